"""Read and verify packed files and their banks, embedded or external."""

from __future__ import annotations

from vbfmt._files import PathLike, storage
from vbfmt._files import banks as bank_files
from vbfmt._files.banks import Sources
from vbfmt._format import rules
from vbfmt._format.container import Bytes
from vbfmt._format.packed_file import PackedFile
from vbfmt.errors import in_file


def read(path: PathLike, banks: Sources | None) -> tuple[PackedFile, memoryview]:
    """Read a packed file into memory and verify it. Return it with its bank's bytes.

    Args:
        banks: where to search for an external bank, as in `vbfmt.load`.

    Raises:
        VbfmtError: the file or its bank is invalid or cannot be read. The class is that of the
            first error found.
    """
    with in_file(path):
        return check(storage.read(path, mmap=False), bank_files.sources(banks, path))


def check(data: Bytes, where: list[bank_files.Source]) -> tuple[PackedFile, memoryview]:
    """Verify the bytes of a packed file. Return the file with its bank's bytes.

    Raises:
        VbfmtError: as for `read`, but the error does not name the file.
    """
    packed = PackedFile.parse(data)
    head = packed.header
    if packed.bank.external:
        array = bank_files.array(packed.bank, head.h, head.b, where, shared=False)
    else:
        array = packed.bank_in_place()
    rules.raise_first(packed.damage())
    rules.raise_first(packed.broken_rules(array))
    return packed, array.reshape(-1).view("u1").data
