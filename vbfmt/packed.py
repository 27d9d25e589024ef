"""Save, load and verify adapters as packed files and bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vbfmt._files import PathLike, outputs, storage
from vbfmt._files import banks as bank_files
from vbfmt._files.banks import Source, Sources
from vbfmt._format import container, external_bank, header, rules
from vbfmt._format.container import Bytes
from vbfmt._format.header import Header
from vbfmt._format.packed_file import BANK, PackedFile
from vbfmt.adapter import Adapter
from vbfmt.errors import ConfigError, DigestError, MagicError, VbfmtError

Form = Literal["embedded", "external"]
"""The form of a packed file: its bank is in the file, or in a separate file that adapters can
share."""


@dataclass(frozen=True)
class Report:
    """The result of `verify`.

    Attributes:
        file: the path as it was given.
        digest: the adapter's digest, ``sha256:…``, or None if the preamble or the header cannot be
            read.
        problems: all errors found; empty if the file is valid.
    """

    file: str
    digest: str | None
    problems: tuple[VbfmtError, ...]

    @property
    def ok(self) -> bool:
        """Whether every digest and every rule holds."""
        return not self.problems

    def __bool__(self) -> bool:
        """Return `ok`, so that ``assert verify(path)`` fails for an invalid file."""
        return self.ok


def dumps(adapter: Adapter, *, bank: Form = "embedded") -> bytes:
    """Return the adapter's packed form. Equal adapters give equal bytes, on any machine.

    Args:
        bank: ``"embedded"``, or ``"external"`` to omit the bank's bytes. `loads` then needs
            `banks`.

    Raises:
        LengthError: names, config and metadata are too long for a header.
        ConfigError: `bank` has another value.
    """
    return b"".join(_pieces(adapter, bank))


def in_memory(adapter: Adapter) -> PackedFile:
    """Return the adapter's embedded form as a `PackedFile`.

    Raises:
        LengthError: names, config and metadata are too long for a header.
    """
    head, front, contents = _laid_out(adapter)
    data = memoryview(b"".join(container.pieces(front, contents)))
    return PackedFile(data, container.read_preamble(data), head)


@dataclass(frozen=True)
class Written:
    """The result of `write`.

    Attributes:
        digest: the adapter's digest, ``sha256:…``, the same for both forms.
        size: length of the file in bytes.
        bank: path of the bank's file, or None if the bank is embedded.
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
    """Write the adapter's packed form durably, completely or not at all.

    Args:
        overwrite: replace an existing file.
        bank: ``"embedded"``, or ``"external"`` to write the bank to a separate file,
            ``<SHA-256>.bank``, which all adapters with this bank share. An existing bank file is
            checked and kept.
        banks: folder for the bank file; by default, the folder of `path`.

    Raises:
        OutputExistsError: `path` exists and `overwrite` is not set.
        ChecksumError: the existing bank file is damaged, and `overwrite` is not set.
        LengthError: names, config and metadata are too long for a header.
        ConfigError: `bank` has another value.
        TargetError: `path` ends like another kind of file, such as ``.safetensors``.
        StorageError: the file could not be written. An existing file is then unchanged.
    """
    outputs.require_packed_name(path)
    pieces = _pieces(adapter, bank)
    start = next(pieces)
    beside = None
    if bank == "external":
        if not overwrite:
            storage.require_absent(path)
        folder = os.path.dirname(os.fspath(path)) if banks is None else banks
        beside = bank_files.write(_as_bytes(adapter.bank), folder, overwrite=overwrite)
    size = storage.write(path, chain([start], pieces), overwrite=overwrite)
    return Written(digest(adapter) if beside else container.digest(start), size, beside)


def save(
    adapter: Adapter,
    path: PathLike,
    *,
    overwrite: bool = False,
    bank: Form = "embedded",
    banks: PathLike | None = None,
) -> str:
    """Write the adapter's packed form durably, completely or not at all. Return its digest.

    Arguments and errors are those of `write`.
    """
    return write(adapter, path, overwrite=overwrite, bank=bank, banks=banks).digest


def digest(adapter: Adapter) -> str:
    """Return the digest of the adapter's packed form, ``sha256:…``, which covers every byte.

    Raises:
        LengthError: names, config and metadata are too long for a header.
    """
    return container.digest(next(_pieces(adapter, "embedded")))


def loads(
    data: Bytes, *, digest: str | None = None, verify: bool = True, banks: Sources | None = None
) -> Adapter:
    """Load an adapter from packed bytes. Its arrays are views of `data`.

    Args:
        digest: the digest that the adapter must have, ``sha256:…``, from a source that you trust.
            It covers every byte, but only if `verify` is set.
        verify: check all hashes and values. If False, the preamble, header, layout, names and texts
            are still checked, but damage to the data is not noticed. An external bank is always
            checked.
        banks: folders to search for an external bank. Adapters with the same external bank share
            one array.

    Raises:
        BankError: the external bank is not in `banks`.
        VbfmtError: `data` is invalid. The class is that of the first error found.
    """
    return _loaded(data, digest, verify, bank_files.sources(banks))[0]


def load(
    path: PathLike,
    *,
    digest: str | None = None,
    verify: bool = True,
    mmap: bool = True,
    banks: Sources | None = None,
) -> Adapter:
    """Load the adapter in a packed file.

    Args:
        path: a path, or ``hf://owner/name[@revision][/file]`` for a repository on the Hugging Face
            Hub (extra ``hub``). Without ``/file``, the repository must contain exactly one packed
            file.
        digest, verify: as in `loads`.
        mmap: memory-map the file instead of reading it. The file must then not be changed or
            truncated while the adapter is in use: reading beyond its new end would kill the
            process. It is safe to replace the file, as `save` does.
        banks: folders to search for an external bank, in order, before the file's own folder and
            ``banks/`` in that folder. An external bank is read, never mapped. All adapters of this
            process with the same bank share one array.

    Raises:
        VbfmtError: the file is invalid. The class is that of the first error found.
        BankError: the external bank is not in these folders.
        StorageError: the file cannot be read.
        SourceError: the repository, revision or file on the Hub does not exist or is not
            accessible.
    """
    path = local(path, "packed")
    return load_with_form(path, digest=digest, verify=verify, mmap=mmap, banks=banks)[0]


def load_with_form(
    path: PathLike,
    *,
    digest: str | None = None,
    verify: bool = True,
    mmap: bool = True,
    banks: Sources | None = None,
) -> tuple[Adapter, str, Form]:
    """Load the adapter in a packed file, and return it with the file's digest and form.

    The file's digest differs from the adapter's (`digest`) if the file has content that this
    version ignores: optional features, or keys of a later minor version.

    Arguments and errors are those of `load`, without ``hf://``.
    """
    try:
        where = bank_files.sources(banks, path)
        return _loaded(storage.read(path, mmap=mmap), digest, verify, where)
    except VbfmtError as error:
        raise _in_file(error, path) from None


def _loaded(
    data: Bytes, digest: str | None, verify: bool, where: Sequence[Source]
) -> tuple[Adapter, str, Form]:
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
    return adapter, found, "external" if packed.bank.external else "embedded"


def _in_file(error: VbfmtError, path: PathLike) -> VbfmtError:
    """Add the file to an error, and replace the advice if the file is a bank."""
    if isinstance(error, MagicError) and os.fspath(path).endswith(bank_files.ENDING):
        error.advice = "it is named like a vector bank; give the packed file that uses it"
    return error.in_file(path)


def _bank(
    packed: PackedFile, where: Sequence[Source], *, shared: bool = True
) -> NDArray[np.float32]:
    """Return the embedded or external bank. An external bank is always checked."""
    if not packed.bank.external:
        return packed.bank_in_place()
    head = packed.header
    return bank_files.array(packed.bank, head.h, head.b, where, shared=shared)


def verify(path: PathLike, *, digest: str | None = None, banks: Sources | None = None) -> Report:
    """Check every byte and every rule of a packed file, and report all errors.

    An external bank is checked too, and it is an error if it is not found.

    Args:
        digest: the digest that you trust. It is an error if the file has another digest.
        banks: folders to search for an external bank, as in `load`.

    Raises:
        StorageError: the file cannot be read at all.
    """
    data = storage.read(path, mmap=True)
    name = os.fspath(path)
    try:
        packed = PackedFile.parse(data)
    except VbfmtError as error:
        return Report(name, None, (_in_file(error, path),))
    problems, bank = list(packed.damage()), None
    try:
        bank = _bank(packed, bank_files.sources(banks, path), shared=False)
    except VbfmtError as error:
        problems.insert(0, error)
    damaged = {problem.part for problem in problems}
    problems += (error for error in packed.broken_rules(bank) if error.part not in damaged)
    if digest is not None and packed.digest != digest:
        problems.append(
            DigestError("not the trusted adapter", found=packed.digest, expected=digest)
        )
    return Report(name, packed.digest, tuple(problem.in_file(path) for problem in problems))


def local(path: PathLike, content: Literal["packed", "checkpoint"]) -> PathLike:
    """Return a path unchanged, but for ``hf://…``, the path in the Hub's cache.

    Raises:
        SourceError: the repository or revision does not exist, has no such content, or is not
            accessible.
    """
    if not (isinstance(path, str) and path.startswith("hf://")):
        return path
    from vbfmt.converters import sources

    return sources.packed(path) if content == "packed" else sources.checkpoint(path)


def _unchecked(**fields: Any) -> Adapter:
    """Return an adapter without checking its values, for ``verify=False``."""
    adapter = object.__new__(Adapter)
    for name, value in fields.items():
        object.__setattr__(adapter, name, value)
    return adapter


def _pieces(adapter: Adapter, bank: Form) -> Iterator[Bytes]:
    """Yield the packed file in pieces. The first piece is the preamble and the header."""
    if bank not in get_args(Form):
        raise ConfigError(
            "bank is one of two forms", found=repr(bank), expected=" or ".join(get_args(Form))
        )
    _, front, contents = _laid_out(adapter)
    if bank == "embedded":
        yield from container.pieces(front, contents)
    else:
        yield from container.pieces(external_bank.thin_front(front), contents[BANK + 1 :])


def _laid_out(adapter: Adapter) -> tuple[Header, bytes, Sequence[Bytes]]:
    """Return the header, the front and the sections' contents of the embedded form."""
    if not isinstance(adapter, Adapter):
        raise ConfigError(
            "not an adapter",
            found=type(adapter).__name__,
            expected="a vbfmt.Adapter",
            advice="a model's adapter is saved by vbfmt.torch.save_packed",
        )
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
