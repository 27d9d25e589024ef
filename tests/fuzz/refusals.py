"""The requirements for every error about hostile input."""

from __future__ import annotations

from vbfmt import errors


def kind_of(error: errors.VbfmtError) -> str:
    """Return the kind of an error. Check that it is a specific class and that the message is
    printable."""
    assert type(error) is not errors.VbfmtError
    assert str(error).isprintable()
    return error.kind
