"""Loading of a mapped file's pages before they are used (Linux 5.14).

If a mapped file was cut off, access to a page beyond its end kills the process (SIGBUS). Loading
the pages first raises an error instead. That is the only reason: it saves no time
(docs/fidelity.md).
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
    """Load the bytes of `values` into memory, if they are in a mapped file.

    Do nothing for other memory, or if the system has no such call.

    Args:
        name: name of the tensor, for the message.

    Raises:
        StorageError: the file was cut off, or cannot be read.
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
