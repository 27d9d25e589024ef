"""Packed files of either form, read and checked whole, with their banks."""

from __future__ import annotations

import os

from vbfmt._files import banks as bank_files
from vbfmt._files import storage
from vbfmt._files.banks import Sources
from vbfmt._format import rules
from vbfmt._format.container import Bytes
from vbfmt._format.packed_file import PackedFile
from vbfmt.errors import VbfmtError

PathLike = str | os.PathLike[str]


def read(path: PathLike, banks: Sources | None) -> tuple[PackedFile, memoryview]:
    """A packed file, read and not mapped, and its bank's bytes; everything is checked.

    Raises:
        VbfmtError: naming the file, and of the kind of the first fault.
    """
    try:
        return check(storage.read(path, mmap=False), bank_files.sources(banks, path))
    except VbfmtError as error:
        raise error.in_file(path) from None


def check(data: Bytes, where: list[bank_files.Source]) -> tuple[PackedFile, memoryview]:
    """The same of bytes. Errors as `read`, without the file."""
    packed = PackedFile.parse(data)
    head = packed.header
    if packed.bank.external:
        array = bank_files.array(packed.bank, head.h, head.b, where, shared=False)
    else:
        array = packed.bank_in_place()
    rules.raise_first(packed.damage())
    rules.raise_first(packed.broken_rules(array))
    return packed, array.reshape(-1).view("u1").data
