"""Pages of mapped files asked for many at once (Linux 5.14).

A page that is not there any more, since its file was cut off, ends the process; asked for, it is an
error. That is the reason for asking: it saves no time (docs/fidelity.md).
"""

from __future__ import annotations

import errno
import mmap
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt.errors import StorageError

_POPULATE_READ = 22
"""MADV_POPULATE_READ (linux/mman.h); Python has no name for it."""


def fetch(values: NDArray[Any], name: str) -> None:
    """Have the bytes of `values` in memory, if they are in a mapped file.

    Does nothing where they are not, or where the system cannot be asked.

    Args:
        name: of the tensor they are from, for the message.

    Raises:
        StorageError: the file was cut off, or the disk does not give it.
    """
    mapping = _mapping_of(values)
    if mapping is None or sys.platform != "linux" or not values.flags.c_contiguous:
        return
    start = _address(values) - _address(memoryview(mapping))
    before = start % mmap.PAGESIZE
    try:
        mapping.madvise(_POPULATE_READ, start - before, values.nbytes + before)
    except OSError as error:
        if error.errno in (errno.EFAULT, errno.EIO):
            raise StorageError(
                "the file was cut off while it was read, or cannot be read", part=name
            ) from None


def _mapping_of(values: NDArray[Any]) -> mmap.mmap | None:
    owner: Any = values
    while hasattr(owner, "base"):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    return owner if isinstance(owner, mmap.mmap) and values.size else None


def _address(values: Any) -> int:
    address: int = np.asarray(values).__array_interface__["data"][0]
    return address
