"""Split vector banks from packed files, join them again, and list them.

A packed file may omit its bank (feature ``external_bank``, section 12 of the specification). The
bank is then a separate file, ``<SHA-256>.bank``, which many adapters can share. `vbfmt.load`
searches for it in the given folders, in the adapter's folder, and in its subfolder ``banks``. The
digest of an adapter is the same in both forms.

`split` and `join` change only the form of a file. They keep content that this version ignores.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from vbfmt._files import PathLike, outputs, storage, verified
from vbfmt._files import banks as bank_files
from vbfmt._files.banks import Source as Source
from vbfmt._files.banks import Sources as Sources
from vbfmt._format.packed_file import PackedFile
from vbfmt.errors import BankError, ChecksumError, StorageError, VbfmtError, in_file
from vbfmt.packed import Written

ENDING = bank_files.ENDING


def split(
    path: PathLike,
    output: PathLike,
    *,
    banks: PathLike | None = None,
    look_in: Sources | None = None,
    overwrite: bool = False,
) -> Written:
    """Write a packed file without its bank, and the bank as a separate file.

    Args:
        path: a packed file in either form. It is verified first.
        output: the file to write. With `overwrite`, it may be `path`.
        banks: the folder for the bank; by default, the folder of `output`.
        look_in: folders to search for an external bank of `path`, as in `vbfmt.load`.
        overwrite: replace existing files.

    Raises:
        VbfmtError: `path` is not a valid packed file.
        TargetError: `output` ends like another kind of file, such as ``.safetensors``.
        OutputExistsError: `output` exists and `overwrite` is not set.
        ChecksumError: the existing bank file is damaged, and `overwrite` is not set.
        StorageError: the operating system reported an error.
    """
    outputs.require_packed_name(output)
    packed, bank = verified.read(path, look_in)
    if not overwrite:
        storage.require_absent(output)
    folder = os.path.dirname(os.fspath(output)) if banks is None else banks
    written = bank_files.write(bank, folder, overwrite=overwrite)
    size = storage.write(output, packed.thin_pieces(), overwrite=overwrite)
    return Written(packed.digest, size, written)


def join(
    path: PathLike,
    output: PathLike,
    *,
    banks: Sources | None = None,
    overwrite: bool = False,
) -> Written:
    """Write a packed file with its bank embedded.

    Args:
        path: a packed file in either form. It is verified first.
        output: the file to write. With `overwrite`, it may be `path`.
        banks: folders to search for an external bank of `path`, as in `vbfmt.load`.
        overwrite: replace an existing file.

    Raises:
        VbfmtError: `path` is not a valid packed file.
        BankError: the external bank was not found.
        TargetError: `output` ends like another kind of file, such as ``.safetensors``.
        OutputExistsError: `output` exists and `overwrite` is not set.
        StorageError: the operating system reported an error.
    """
    outputs.require_packed_name(output)
    packed, bank = verified.read(path, banks)
    size = storage.write(output, packed.embedded_pieces(bank), overwrite=overwrite)
    return Written(packed.digest, size)


@dataclass
class Listed:
    """A bank that exists or that an adapter needs.

    Attributes:
        sha256: SHA-256 of the bank, 64 hexadecimal digits.
        size: length in bytes.
        file: path of the bank; None if it was not found.
        problem: what is wrong with the bank, or None.
        adapters: the given packed files that use it.
    """

    sha256: str
    size: int
    file: str | None = None
    problem: VbfmtError | None = None
    adapters: list[str] = field(default_factory=list)


def listing(paths: Iterable[PathLike], *, banks: Sources | None = None) -> list[Listed]:
    """Return the banks in folders and the banks that packed files use, sorted by SHA-256.

    Args:
        paths: packed files, banks, or folders with them. Subfolders ``banks`` are included.
        banks: other folders to search for the banks that packed files need.

    Raises:
        StorageError: a path does not exist or cannot be read.
        VbfmtError: the preamble or the header of a packed file is invalid.
    """
    found: dict[str, Listed] = {}
    files = [file for path in paths for file in _files(os.fspath(path))]
    for file in files:
        if file.endswith(ENDING):
            one = _bank_file(file)
            found.setdefault(one.sha256, one)
    for file in files:
        if not file.endswith(ENDING):
            _add_need(found, file, bank_files.sources(banks, file))
    return [found[sha256] for sha256 in sorted(found)]


def _files(path: str) -> Iterator[str]:
    if not os.path.isdir(path):
        yield path
        return
    with storage.refusing("cannot read", path):
        names = sorted(os.listdir(path))
    for name in names:
        file = os.path.join(path, name)
        if name == bank_files.FOLDER and os.path.isdir(file):
            yield from (one for one in _files(file) if one.endswith(ENDING))
        elif name.endswith((ENDING, ".vblora")):
            yield file


def _bank_file(path: str) -> Listed:
    content = storage.read(path, mmap=True)
    sha256 = os.path.basename(path).removesuffix(ENDING)
    one = Listed(sha256, len(content), path)
    try:
        bank_files.require_intact(content, sha256, len(content), path)
    except ChecksumError as error:
        one.problem = error
    return one


def _add_need(found: dict[str, Listed], file: str, where: Sequence[Source]) -> None:
    with in_file(file):
        packed = PackedFile.parse(storage.read(file, mmap=True))
    if not packed.bank.external:
        return
    sha256 = packed.bank.sha256.hex()
    one = found.setdefault(sha256, Listed(sha256, packed.bank.length))
    one.adapters.append(file)
    if one.file is None:
        try:
            one.file = bank_files.located(sha256, packed.bank.length, where)
        except (BankError, ChecksumError, StorageError) as error:
            one.problem = error.in_file(file)
