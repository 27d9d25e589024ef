"""Convert between the two forms of a packed file: embedded, with its bank, and thin (section 12).

Their fronts (preamble and header) differ only in offsets, lengths, CRC and required features, so
each front can be computed from the other without the bank. Both forms have the same digest: that of
the embedded form's front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vbfmt._format import canonical, container
from vbfmt._format.canonical import Document
from vbfmt._format.container import Bytes
from vbfmt._format.header import EXTERNAL_BANK, KEYS
from vbfmt.errors import LayoutError, LengthError


def embedded_front(front: Bytes) -> bytes:
    """Return the front of the embedded form, given that of the thin form.

    Raises:
        LayoutError: the embedded form would be too long.
    """
    parts = _Parts.of(front)
    features = [name for name in parts.features if name != EXTERNAL_BANK]
    try:
        return parts.laid_out(features, [length for _, length, _ in parts.sections])
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
    parts = _Parts.of(front)
    features = sorted([*parts.features, EXTERNAL_BANK], key=str.encode)
    _, *others = parts.sections
    return parts.laid_out(features, [0, *(length for _, length, _ in others)])


_FEATURES, _SECTIONS = KEYS.index("required_features"), KEYS.index("sections")


@dataclass(frozen=True)
class _Parts:
    """A header, with the parts that differ between the two forms. All other bytes are the same.

    Attributes:
        document: the header, which has been checked already.
        features: names of the required features.
        sections: offset, length and SHA-256 of each section.
        minor: the file's minor version.
    """

    document: Document
    features: list[str]
    sections: list[tuple[int, int, bytes]]
    minor: int

    @classmethod
    def of(cls, front: Bytes) -> _Parts:
        document = canonical.read(bytes(front[container.PREAMBLE_LENGTH :]))
        minor = container.minor_of(front)
        return cls(document, document.value(_FEATURES), document.value(_SECTIONS), minor)

    def laid_out(self, features: Sequence[str], stored: Sequence[int]) -> bytes:
        """Return the front with these features, for sections that take `stored` bytes in the
        file."""
        offsets = container.offsets(stored)
        end = offsets[-1] + stored[-1]
        container.require_length(end)
        sections = [
            [offset, length, sha256]
            for offset, (_, length, sha256) in zip(offsets, self.sections, strict=True)
        ]
        data = self.document.data
        features_start, features_stop = self.document.span(_FEATURES)
        sections_start, sections_stop = self.document.span(_SECTIONS)
        header = (
            data[:features_start]
            + canonical.pack(features)
            + data[features_stop:sections_start]
            + canonical.pack(sections)
            + data[sections_stop:]
        )
        return container.front(header, end, minor=self.minor)
