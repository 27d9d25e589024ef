"""What must hold of every error that hostile input meets."""

from __future__ import annotations

from vbfmt import errors


def kind_of(error: errors.VbfmtError) -> str:
    """The kind of an error, which must be a definite one and printable."""
    assert type(error) is not errors.VbfmtError
    assert str(error).isprintable()
    return error.kind
