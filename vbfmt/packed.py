"""Adapters as packed bytes and files: save, load, verify."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._files import storage
from vbfmt._format import container, header, rules
from vbfmt._format.container import Bytes
from vbfmt._format.header import Header
from vbfmt._math.admixture import index_dtype
from vbfmt.adapter import Adapter
from vbfmt.errors import DigestError, VbfmtError
from vbfmt.tensors import Tensor

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        file: as it was given.
        digest: of the file, if its front could be read.
        problems: everything that is wrong; empty if all is well.
    """

    file: str
    digest: str | None
    problems: tuple[VbfmtError, ...]

    @property
    def ok(self) -> bool:
        """Whether every digest and every rule holds."""
        return not self.problems

    def __bool__(self) -> bool:
        """False for a file with problems, so that ``assert verify(path)`` means what it says."""
        return self.ok


def dumps(adapter: Adapter) -> bytes:
    """The adapter's packed form. Equal adapters give equal bytes, on any machine.

    Raises:
        LengthError: names, config and metadata do not fit into a header.
    """
    return b"".join(_chunks(adapter))


@dataclass(frozen=True)
class Written:
    """What `write` wrote.

    Attributes:
        digest: ``sha256:…``.
        size: bytes of the file.
    """

    digest: str
    size: int


def write(adapter: Adapter, path: PathLike, *, overwrite: bool = False) -> Written:
    """Write the adapter's packed form durably, all or nothing.

    Raises:
        OutputExistsError: `path` exists and `overwrite` is not set.
        StorageError: the file could not be written; an older one is then untouched.
    """
    pieces = _chunks(adapter)
    start = next(pieces)
    size = storage.write(path, _with_first(start, pieces), overwrite=overwrite)
    return Written(container.digest(start), size)


def save(adapter: Adapter, path: PathLike, *, overwrite: bool = False) -> str:
    """Write the adapter's packed form as `write` does, with its errors; return its digest."""
    return write(adapter, path, overwrite=overwrite).digest


def digest(adapter: Adapter) -> str:
    """``sha256:…``, the name of the adapter's packed form: it covers every byte."""
    return container.digest(next(_chunks(adapter)))


def loads(data: Bytes, *, digest: str | None = None, verify: bool = True) -> Adapter:
    """The adapter that packed bytes hold. Its arrays are views of `data`.

    Args:
        digest: refuse any other adapter than this one, ``sha256:…`` from where you trust it. It
            covers every byte, but only together with `verify`.
        verify: check every digest and every value. Without it the front (preamble, header,
            layout) is still checked, and damage to the data goes unnoticed.

    Raises:
        VbfmtError: of the kind of the first fault.
    """
    adapter, _ = _loaded(data, digest, verify)
    return adapter


def load(
    path: PathLike, *, digest: str | None = None, verify: bool = True, mmap: bool = True
) -> Adapter:
    """The adapter in a packed file; `digest` and `verify` as in `loads`.

    Args:
        mmap: use the file in place. The file must not be cut off while the adapter is in use:
            reading past the new end would end the process. Replacing it (as `save` does) is
            harmless. With False its bytes are read, and nothing done to the file matters any more.

    Raises:
        VbfmtError: naming the file, and of the kind of the first fault.
        StorageError: the file cannot be read.
    """
    try:
        return loads(storage.read(path, mmap=mmap), digest=digest, verify=verify)
    except VbfmtError as error:
        raise error.in_file(path) from None


def load_with_digest(path: PathLike) -> tuple[Adapter, str]:
    """The adapter in a packed file, and the file's digest.

    That is not the adapter's own (`digest`) where the file holds what this version passes over:
    optional features, keys of a later minor version.

    Raises:
        VbfmtError, StorageError: as `load`.
    """
    try:
        return _loaded(storage.read(path, mmap=True), None, True)
    except VbfmtError as error:
        raise error.in_file(path) from None


def _loaded(data: Bytes, digest: str | None, verify: bool) -> tuple[Adapter, str]:
    packed = _Packed.parse(data)
    found = packed.digest
    if digest is not None and found != digest:
        raise DigestError("not the adapter that was asked for", found=found, expected=digest)
    if verify:
        rules.raise_first(packed.damage())
    return packed.adapter(checked=verify), found


def verify(path: PathLike, *, digest: str | None = None) -> Report:
    """Check every byte and every rule of a packed file, and list all faults, not the first alone.

    Raises:
        StorageError: the file cannot be read at all.
    """
    data = storage.read(path, mmap=True)
    name = os.fspath(path)
    try:
        packed = _Packed.parse(data)
    except VbfmtError as error:
        return Report(name, None, (_in_file(error, path),))
    problems = list(packed.damage())
    damaged = {problem.part for problem in problems}
    problems += (fault for fault in packed.broken_rules() if fault.part not in damaged)
    if digest is not None and packed.digest != digest:
        problems.append(
            DigestError("not the trusted adapter", found=packed.digest, expected=digest)
        )
    return Report(name, packed.digest, tuple(_in_file(problem, path) for problem in problems))


@dataclass(frozen=True)
class _Packed:
    """A packed file whose front has been read and holds together."""

    data: memoryview
    preamble: container.Preamble
    header: Header

    @classmethod
    def parse(cls, data: Bytes) -> _Packed:
        view = memoryview(data).cast("B")
        preamble = container.read_preamble(view)
        front = bytes(view[container.PREAMBLE_LENGTH : preamble.header_end])
        parsed = header.decode(front, preamble.minor)
        container.require_layout(preamble, parsed.sections, parsed.section_names)
        return cls(view, preamble, parsed)

    @property
    def digest(self) -> str:
        return container.digest(self.data[: self.preamble.header_end])

    def damage(self) -> Iterator[VbfmtError]:
        return container.damage(
            self.data, self.preamble, self.header.sections, self.header.section_names
        )

    def broken_rules(self) -> Iterator[VbfmtError]:
        adapter = self.adapter(checked=False)
        yield from adapter.broken_texts()
        yield from adapter.broken_values()

    def adapter(self, *, checked: bool) -> Adapter:
        return (Adapter if checked else _unchecked)(**self._fields())

    def _fields(self) -> dict[str, Any]:
        head = self.header
        return {
            "bank": self._array(0, np.dtype("<f4"), head.b),
            "indices": self._array(1, index_dtype(head.h), head.k),
            "weights": self._array(2, np.dtype("<f4"), head.k - 1),
            "modules": head.modules,
            "tensors": {
                name: Tensor(dtype, shape, self._bytes(3 + position))
                for position, (name, dtype, shape) in enumerate(head.tensors)
            },
            "base_model": head.base_model,
            "base_revision": head.base_revision,
            "config": head.config,
            "metadata": head.metadata,
        }

    def _array(self, section: int, dtype: np.dtype[Any], columns: int) -> NDArray[Any]:
        rows = self.header.h if section == 0 else self.header.rows
        return self._bytes(section).view(dtype).reshape(rows, columns)

    def _bytes(self, section: int) -> NDArray[np.uint8]:
        part = container.content(self.data, self.preamble, self.header.sections[section])
        array = np.frombuffer(part, dtype=np.uint8)
        array.flags.writeable = False
        return array


def _unchecked(**fields: Any) -> Adapter:
    """An adapter whose values nobody has looked at: what ``verify=False`` asks for."""
    adapter = object.__new__(Adapter)
    for name, value in fields.items():
        object.__setattr__(adapter, name, value)
    return adapter


def _chunks(adapter: Adapter) -> Iterator[Bytes]:
    """The file piece by piece; the first is preamble and header."""
    arrays = (adapter.bank, adapter.indices, adapter.weights)
    contents: Sequence[Bytes] = [
        *(_as_bytes(array) for array in arrays),
        *(_as_bytes(tensor.data) for tensor in adapter.tensors.values()),
    ]
    sections = container.describe(contents)
    front = header.encode(
        Header(
            h=adapter.h,
            b=adapter.b,
            k=adapter.k,
            modules=adapter.modules,
            tensors=tuple((n, t.dtype, t.shape) for n, t in adapter.tensors.items()),
            sections=sections,
            base_model=adapter.base_model,
            base_revision=adapter.base_revision,
            config=adapter.config,
            metadata=adapter.metadata,
        )
    )
    yield from container.chunks(container.front(front, sections), sections, contents)


def _as_bytes(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _with_first(first: Bytes, rest: Iterator[Bytes]) -> Iterator[Bytes]:
    yield first
    yield from rest


def _in_file(error: VbfmtError, path: PathLike) -> VbfmtError:
    return error.in_file(Path(path))
