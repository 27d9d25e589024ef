"""Adapters as packed bytes and files: save, load, verify."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vbfmt._files import banks as bank_files
from vbfmt._files import storage
from vbfmt._files.banks import Source, Sources
from vbfmt._format import container, external_bank, header, rules
from vbfmt._format.container import Bytes
from vbfmt._format.header import Header
from vbfmt._format.packed_file import BANK, PackedFile
from vbfmt.adapter import Adapter
from vbfmt.errors import ConfigError, DigestError, VbfmtError

PathLike = str | os.PathLike[str]
Form = Literal["embedded", "external"]
"""Where a packed file has its bank: inside, or as a file of its own that adapters can share."""


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        file: as it was given.
        digest: of the adapter, if the file's front could be read.
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


def dumps(adapter: Adapter, *, bank: Form = "embedded") -> bytes:
    """The adapter's packed form. Equal adapters give equal bytes, on any machine.

    Args:
        bank: ``"external"`` leaves the bank's bytes out; `loads` then asks for them.

    Raises:
        LengthError: names, config and metadata do not fit into a header.
        ConfigError: `bank` is neither of the two.
    """
    return b"".join(_chunks(adapter, bank))


def in_memory(adapter: Adapter) -> PackedFile:
    """The adapter's packed form with its bank, as `PackedFile.parse` of `dumps`; LengthError as
    there."""
    head, front, contents = _laid_out(adapter)
    data = memoryview(b"".join(container.chunks(front, contents)))
    return PackedFile(data, container.read_preamble(data), head)


@dataclass(frozen=True)
class Written:
    """What `write` wrote.

    Attributes:
        digest: ``sha256:…``, the same whether the bank is inside or not.
        size: bytes of the file.
        bank: path of the bank's file, if it is one of its own.
    """

    digest: str
    size: int
    bank: str | None = None


def write(
    adapter: Adapter,
    path: PathLike,
    *,
    overwrite: bool = False,
    bank: Form = "embedded",
    banks: PathLike | None = None,
) -> Written:
    """Write the adapter's packed form durably, all or nothing.

    Args:
        bank: ``"external"`` writes the bank, first, to a file of its own, ``<SHA-256>.bank``, which
            all adapters with that bank share. One that is there already is checked and kept.
        banks: the folder for that file; the adapter's own if not given.

    Raises:
        OutputExistsError: `path` exists and `overwrite` is not set.
        ChecksumError: a damaged bank has the bank's name, and `overwrite` is not set.
        StorageError: the file could not be written; an older one is then untouched.
    """
    pieces = _chunks(adapter, bank)
    start = next(pieces)
    beside = None
    if bank == "external":
        if not overwrite:
            storage.require_absent(path)
        folder = os.path.dirname(os.fspath(path)) if banks is None else banks
        beside = bank_files.write(_as_bytes(adapter.bank), folder, overwrite=overwrite)
    size = storage.write(path, _with_first(start, pieces), overwrite=overwrite)
    return Written(digest(adapter) if beside else container.digest(start), size, beside)


def save(
    adapter: Adapter,
    path: PathLike,
    *,
    overwrite: bool = False,
    bank: Form = "embedded",
    banks: PathLike | None = None,
) -> str:
    """Write the adapter's packed form as `write` does, with its errors; return its digest."""
    return write(adapter, path, overwrite=overwrite, bank=bank, banks=banks).digest


def digest(adapter: Adapter) -> str:
    """``sha256:…``, the name of the adapter's packed form: it covers every byte."""
    return container.digest(next(_chunks(adapter, "embedded")))


def loads(
    data: Bytes, *, digest: str | None = None, verify: bool = True, banks: Sources | None = None
) -> Adapter:
    """The adapter that packed bytes hold. Its arrays are views of `data`.

    Args:
        digest: refuse any other adapter than this one, ``sha256:…`` from where you trust it. It
            covers every byte, but only together with `verify`.
        verify: check every digest and every value. Without it the front (preamble, header, layout,
            names and texts) is still checked, and damage to the data goes unnoticed. A bank that
            is not in `data` is always checked.
        banks: folders to look for that bank in. Adapters with one bank share one array.

    Raises:
        BankError: the bank is neither in `data` nor in `banks`.
        VbfmtError: of the kind of the first fault.
    """
    adapter, _ = _loaded(data, digest, verify, bank_files.sources(banks))
    return adapter


def load(
    path: PathLike,
    *,
    digest: str | None = None,
    verify: bool = True,
    mmap: bool = True,
    banks: Sources | None = None,
) -> Adapter:
    """Load the adapter in a packed file; `digest` and `verify` as in `loads`.

    Args:
        path: a path, or ``hf://owner/name[@revision][/file]`` for a repository on the Hugging Face
            Hub (extra ``hub``). Without ``/file`` the repository must hold one packed file.
        mmap: use the file in place. The file must not be cut off while the adapter is in use:
            reading past the new end would end the process. Replacing it (as `save` does) is
            harmless. With False its bytes are read, and nothing done to the file matters any more.
        banks: where to look for a bank that is not in the file, before the file's own folder and
            ``banks/`` in that: folders, in order. Such a bank is read, never mapped, and once for
            all adapters that this process has with it: one that is known by its hash is taken.

    Raises:
        VbfmtError: naming the file, and of the kind of the first fault.
        BankError: the bank is not in any of those folders.
        StorageError: the file cannot be read.
        SourceError: no such repository, revision or file on the Hub, or no access to it.
    """
    path = _local(path)
    try:
        where = bank_files.sources(banks, path)
        return _loaded(storage.read(path, mmap=mmap), digest, verify, where)[0]
    except VbfmtError as error:
        raise error.in_file(path) from None


def load_with_digest(
    path: PathLike,
    *,
    digest: str | None = None,
    mmap: bool = True,
    banks: Sources | None = None,
) -> tuple[Adapter, str]:
    """The adapter in a packed file, and the file's digest; arguments as in `load`.

    That is not the adapter's own (`digest`) where the file holds what this version passes over:
    optional features, keys of a later minor version.

    Raises:
        VbfmtError, StorageError: as `load`.
    """
    try:
        where = bank_files.sources(banks, path)
        return _loaded(storage.read(path, mmap=mmap), digest, True, where)
    except VbfmtError as error:
        raise error.in_file(path) from None


def _loaded(
    data: Bytes, digest: str | None, verify: bool, where: Sequence[Source]
) -> tuple[Adapter, str]:
    packed = PackedFile.parse(data)
    found = packed.digest
    if digest is not None and found != digest:
        raise DigestError("not the adapter that was asked for", found=found, expected=digest)
    bank = _bank(packed, where)
    if verify:
        rules.raise_first(packed.damage())
    adapter = (Adapter if verify else _unchecked)(**packed.fields(bank))
    if not verify:
        rules.raise_first(adapter.broken_texts())
    return adapter, found


def _bank(
    packed: PackedFile, where: Sequence[Source], *, shared: bool = True
) -> NDArray[np.float32]:
    """The bank, in the file or from elsewhere; one from elsewhere is checked in any case."""
    if not packed.bank.external:
        return packed.bank_in_place()
    head = packed.header
    return bank_files.array(packed.bank, head.h, head.b, where, shared=shared)


def verify(path: PathLike, *, digest: str | None = None, banks: Sources | None = None) -> Report:
    """Check every byte and every rule of a packed file, and list all faults, not the first alone.

    A bank that is not in the file is read and checked, too; if it is not found, that is a fault.

    Args:
        digest: the one that you trust; any other is a fault.
        banks: where to look for the bank, as in `load`.

    Raises:
        StorageError: the file cannot be read at all.
    """
    data = storage.read(path, mmap=True)
    name = os.fspath(path)
    try:
        packed = PackedFile.parse(data)
    except VbfmtError as error:
        return Report(name, None, (error.in_file(path),))
    problems, bank = list(packed.damage()), None
    try:
        bank = _bank(packed, bank_files.sources(banks, path), shared=False)
    except VbfmtError as error:
        problems.insert(0, error)
    damaged = {problem.part for problem in problems}
    problems += (fault for fault in packed.broken_rules(bank) if fault.part not in damaged)
    if digest is not None and packed.digest != digest:
        problems.append(
            DigestError("not the trusted adapter", found=packed.digest, expected=digest)
        )
    return Report(name, packed.digest, tuple(problem.in_file(path) for problem in problems))


def _local(path: PathLike) -> PathLike:
    """Return a path as it is; for ``hf://…``, that of the file in the Hub's cache."""
    if not (isinstance(path, str) and path.startswith("hf://")):
        return path
    from vbfmt.converters import sources

    return sources.packed(path)


def _unchecked(**fields: Any) -> Adapter:
    """Return an adapter whose values are not checked, as ``verify=False`` asks."""
    adapter = object.__new__(Adapter)
    for name, value in fields.items():
        object.__setattr__(adapter, name, value)
    return adapter


def _chunks(adapter: Adapter, bank: Form) -> Iterator[Bytes]:
    """The file piece by piece; the first is preamble and header."""
    if bank not in get_args(Form):
        raise ConfigError(
            "bank is one of two forms", found=repr(bank), expected=" or ".join(get_args(Form))
        )
    _, front, contents = _laid_out(adapter)
    if bank == "embedded":
        yield from container.chunks(front, contents)
    else:
        yield from container.chunks(external_bank.thin_front(front), contents[BANK + 1 :])


def _laid_out(adapter: Adapter) -> tuple[Header, bytes, Sequence[Bytes]]:
    """The header, the front and the contents of the sections, of the form with its bank."""
    arrays = (adapter.bank, adapter.indices, adapter.weights)
    contents: Sequence[Bytes] = [
        *(_as_bytes(array) for array in arrays),
        *(_as_bytes(tensor.data) for tensor in adapter.tensors.values()),
    ]
    sections = container.sections_of(contents)
    head = Header(
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
    return head, container.front(header.encode(head), sections[-1].end), contents


def _as_bytes(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _with_first(first: Bytes, rest: Iterator[Bytes]) -> Iterator[Bytes]:
    yield first
    yield from rest
