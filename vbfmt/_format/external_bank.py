"""The two forms of one adapter: with its bank inside, and with the bank elsewhere (section 12).

Only offsets, the file's length and the list of required features differ, so each front follows from
the other, without the bank. The digest of both is that of the embedded form's front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack

from vbfmt._format import canonical, container
from vbfmt._format.container import Bytes
from vbfmt._format.header import EXTERNAL_BANK
from vbfmt.errors import LayoutError, LengthError


def embedded_front(front: Bytes) -> bytes:
    """Preamble and header of the embedded form, from those of a file without its bank.

    Raises:
        LayoutError: there can be no such file: it would be too long.
    """
    raw = _header(front)
    raw["required_features"].remove(EXTERNAL_BANK)
    try:
        return _laid_out(front, raw, [length for _, length, _ in raw["sections"]])
    except LengthError as error:
        raise LayoutError(
            "the file with its bank embedded would be too long",
            part="sections",
            found=error.found,
            expected=error.expected,
        ) from None


def thin_front(front: Bytes) -> bytes:
    """Preamble and header of the form without its bank, from those of the embedded form.

    Raises:
        LengthError: the header becomes longer than the format allows.
    """
    raw = _header(front)
    raw["required_features"] = sorted([*raw["required_features"], EXTERNAL_BANK], key=str.encode)
    _, *others = raw["sections"]
    return _laid_out(front, raw, [0, *(length for _, length, _ in others)])


def _header(front: Bytes) -> dict[str, Any]:
    """The header map, of bytes that have been checked already."""
    raw: dict[str, Any] = msgpack.unpackb(bytes(front[container.PREAMBLE_LENGTH :]), raw=False)
    return raw


def _laid_out(front: Bytes, raw: dict[str, Any], stored: Sequence[int]) -> bytes:
    """The front of the same header with sections that take so many bytes of the file."""
    offsets = container.offsets(stored)
    end = offsets[-1] + stored[-1]
    container.require_length(end)
    raw["sections"] = [
        [offset, length, sha256]
        for offset, (_, length, sha256) in zip(offsets, raw["sections"], strict=True)
    ]
    return container.front(canonical.pack(raw), end, minor=container.minor_of(front))
