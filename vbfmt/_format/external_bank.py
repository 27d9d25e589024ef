"""The two forms of a packed file: embedded, with its bank, and thin, without it (section 12).

Their fronts (preamble and header) differ only in offsets, lengths, CRC and required features, so
each front can be computed from the other without the bank. Both forms have the same digest: that of
the embedded form's front.
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
    """Return the front of the embedded form, given that of the thin form.

    Raises:
        LayoutError: the embedded form would be too long.
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
    """Return the front of the thin form, given that of the embedded form.

    Raises:
        LengthError: the header would be longer than the format allows.
    """
    raw = _header(front)
    raw["required_features"] = sorted([*raw["required_features"], EXTERNAL_BANK], key=str.encode)
    _, *others = raw["sections"]
    return _laid_out(front, raw, [0, *(length for _, length, _ in others)])


def _header(front: Bytes) -> dict[str, Any]:
    """Decode the header of a front that has been checked already."""
    raw: dict[str, Any] = msgpack.unpackb(bytes(front[container.PREAMBLE_LENGTH :]), raw=False)
    return raw


def _laid_out(front: Bytes, raw: dict[str, Any], stored: Sequence[int]) -> bytes:
    """Return the front with the header `raw` and sections of `stored` bytes in the file."""
    offsets = container.offsets(stored)
    end = offsets[-1] + stored[-1]
    container.require_length(end)
    raw["sections"] = [
        [offset, length, sha256]
        for offset, (_, length, sha256) in zip(offsets, raw["sections"], strict=True)
    ]
    return container.front(canonical.pack(raw), end, minor=container.minor_of(front))
