"""A packed file in memory: its front, views of its sections, and the errors in its data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._format import container, external_bank, header, rules
from vbfmt._format.container import Bytes, Section
from vbfmt._format.header import Header
from vbfmt._math.admixture import index_dtype
from vbfmt.errors import VbfmtError
from vbfmt.tensors import Tensor

BANK, INDICES, WEIGHTS, OTHERS = range(4)
"""Indices of the sections; those of the other tensors start at `OTHERS`."""


@dataclass(frozen=True)
class PackedFile:
    """A packed file whose front (preamble, header, layout) has been checked.

    In the embedded form, the bank is a section of the file; in the thin form, it is in another
    file.
    """

    data: memoryview
    preamble: container.Preamble
    header: Header

    @classmethod
    def parse(cls, data: Bytes) -> PackedFile:
        """Read and check the front.

        Raises:
            VbfmtError: the front is invalid. The class is that of the first error found.
        """
        view = memoryview(data).cast("B")
        preamble = container.read_preamble(view)
        front = bytes(view[container.PREAMBLE_LENGTH : preamble.header_end])
        parsed = header.decode(front, preamble.minor)
        container.require_layout(preamble, parsed.sections, parsed.section_names)
        packed = cls(view, preamble, parsed)
        if packed.bank.external:
            _ = packed.embedded_front  # raises an error if the embedded form would be too long
        return packed

    @property
    def front(self) -> memoryview:
        """The preamble and the header of this file."""
        return self.data[: self.preamble.header_end]

    @cached_property
    def embedded_front(self) -> Bytes:
        """The preamble and the header of the embedded form, whichever form this file has."""
        return external_bank.embedded_front(self.front) if self.bank.external else self.front

    @property
    def digest(self) -> str:
        """The adapter's digest, which is the same for both forms."""
        return container.digest(self.embedded_front)

    @property
    def bank(self) -> Section:
        """The section of the vector bank, which may be external."""
        return self.header.sections[BANK]

    def content(self, section: int) -> memoryview:
        """Return the bytes of a section that is in this file."""
        return container.content(self.data, self.preamble, self.header.sections[section])

    def stored(self) -> list[memoryview]:
        """Return the contents of all sections that are in this file, in order."""
        return [
            self.content(number)
            for number, section in enumerate(self.header.sections)
            if not section.external
        ]

    def thin_pieces(self) -> Iterator[Bytes]:
        """Yield the thin form piece by piece.

        Raises:
            LengthError: the header would be longer than the format allows.
        """
        if self.bank.external:
            return container.pieces(bytes(self.front), self.stored())
        front = external_bank.thin_front(self.front)
        return container.pieces(front, self.stored()[BANK + 1 :])

    def embedded_pieces(self, bank: Bytes) -> Iterator[Bytes]:
        """Yield the embedded form piece by piece."""
        contents = [bank, *self.stored()] if self.bank.external else self.stored()
        return container.pieces(bytes(self.embedded_front), contents)

    def damage(self) -> Iterator[VbfmtError]:
        """Yield the errors in padding and hashes, except those in an external bank."""
        return container.damage(
            self.data, self.preamble, self.header.sections, self.header.section_names
        )

    def broken_rules(self, bank: NDArray[np.float32] | None) -> Iterator[VbfmtError]:
        """Yield the broken rules of texts and values, including the bank's values if it is
        given."""
        head = self.header
        yield from rules.broken_texts(
            head.base_model, head.base_revision, head.config, head.metadata or {}
        )
        if bank is not None:
            yield from rules.broken_bank_values(bank)
        indices, weights = self.indices, self.weights
        yield from rules.broken_index_values(indices, head.h)
        yield from rules.broken_weight_values(indices, weights)

    def bank_in_place(self) -> NDArray[np.float32]:
        """Return the embedded bank as a view: (h, b) float32."""
        return self._array(BANK, np.dtype("<f4"), self.header.h, self.header.b)

    @property
    def indices(self) -> NDArray[np.unsignedinteger[Any]]:
        """𝓘 as a view: (N, k) uint8 or uint16."""
        head = self.header
        return self._array(INDICES, index_dtype(head.h), head.rows, head.k)

    @property
    def weights(self) -> NDArray[np.float32]:
        """𝓥 as a view: (N, k − 1) float32."""
        return self._array(WEIGHTS, np.dtype("<f4"), self.header.rows, self.header.k - 1)

    def fields(self, bank: NDArray[np.float32]) -> dict[str, Any]:
        """Return the arguments for `Adapter`. The arrays are views of the file."""
        head = self.header
        return {
            "bank": bank,
            "indices": self.indices,
            "weights": self.weights,
            "modules": head.modules,
            "tensors": {
                name: Tensor(dtype, shape, self._bytes(OTHERS + position))
                for position, (name, dtype, shape) in enumerate(head.tensors)
            },
            "base_model": head.base_model,
            "base_revision": head.base_revision,
            "config": head.config,
            "metadata": head.metadata,
        }

    def _array(self, section: int, dtype: np.dtype[Any], rows: int, columns: int) -> NDArray[Any]:
        return self._bytes(section).view(dtype).reshape(rows, columns)

    def _bytes(self, section: int) -> NDArray[np.uint8]:
        array = np.frombuffer(self.content(section), dtype=np.uint8)
        array.flags.writeable = False
        return array
