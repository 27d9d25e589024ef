"""Creating the parent folders of an output."""

from __future__ import annotations

import pytest

from vbfmt import errors
from vbfmt._files import parents


def test_a_drive_that_does_not_exist_is_one_error(monkeypatch):
    """On Windows not even the first folder of a path need exist."""
    monkeypatch.setattr(parents.os.path, "lexists", lambda path: False)
    with pytest.raises(errors.TargetError, match="no folder to write into .* does not exist"):
        parents.nearest("models/x.vblora")
