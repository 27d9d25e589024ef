"""The public face: what `import vbfmt` offers."""

from __future__ import annotations

import pytest

import vbfmt


def test_every_public_name_is_listed_and_there():
    for name in vbfmt.__all__:
        assert name in dir(vbfmt)
        assert getattr(vbfmt, name) is not None


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        vbfmt.laod  # noqa: B018
