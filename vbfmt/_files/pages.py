"""Load the pages of a memory-mapped file before they are used (Linux 5.14).

If a mapped file has been truncated, reading a page beyond its end kills the process (SIGBUS). If
the pages are loaded first, there is an error instead. This is done only for that reason, because it
saves no time (docs/fidelity.md).

This is for a base, which is read for minutes. A checkpoint is read in less than a second, and then
loading its pages first would take about as long as reading them.
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
    """Load the bytes of `values` into memory if they are in a mapped file.

    Do nothing for other memory, or if the system has no call for this.

    Args:
        name: name of the tensor, for the message.

    Raises:
        StorageError: the file was truncated, or cannot be read.
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
                "the file was truncated while it was read, or cannot be read", part=name
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
