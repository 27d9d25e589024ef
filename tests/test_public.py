"""The public names of `import vbfmt`."""

from __future__ import annotations

import pytest

import vbfmt


def test_every_public_name_is_listed_and_exists():
    for name in vbfmt.__all__:
        assert name in dir(vbfmt)
        assert getattr(vbfmt, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        vbfmt.laod  # noqa: B018
