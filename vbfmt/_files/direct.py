"""Write long files without the page cache (O_DIRECT, Linux).

If a file is flushed to the disk immediately, the page cache does not help: its pages are allocated,
filled and written back, and they displace pages that other programs need. Writing gigabytes
directly takes a fraction of the CPU time.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vbfmt._format.container import Bytes

if TYPE_CHECKING:
    from concurrent.futures import Future

ALIGNMENT = 4096


def write(file: int, blocks: Iterable[Bytes]) -> None:
    """Write blocks to an empty file. Each is written while the next one is being computed.

    For direct writing, blocks must begin at a memory page, and all sizes except the last must be
    multiples of `ALIGNMENT`. From the first block that does not meet this, the page cache is used.
    It is also used if the file system does not support direct writing.

    Args:
        file: a descriptor, open for writing.
        blocks: the bytes. A block must not change until two more blocks have been requested.

    Raises:
        OSError: the operating system reported an error.
    """
    from concurrent.futures import ThreadPoolExecutor  # slow to import

    _set_direct(file, True)
    with ThreadPoolExecutor(1) as pool:
        pending: Future[None] | None = None
        for block in blocks:
            if pending:
                pending.result()
            pending = pool.submit(_write_block, file, block)
        if pending:
            pending.result()


def aligned(size: int) -> NDArray[np.uint8]:
    """Return zeroed memory that can be written directly: (size,) uint8."""
    return np.frombuffer(mmap.mmap(-1, size), np.uint8)  # an anonymous map begins at a page


def _write_block(file: int, block: Bytes) -> None:
    rest = memoryview(block).cast("B")
    while rest:
        if len(rest) % ALIGNMENT:  # the last block, or the rest of a partial write
            _set_direct(file, False)
        try:
            rest = rest[os.write(file, rest) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not _set_direct(file, False):
                raise


def _set_direct(file: int, wanted: bool) -> bool:
    """Switch direct writing on or off. Return whether this changed anything."""
    if sys.platform != "linux":
        return False
    import fcntl

    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    changed = flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, changed)
    except OSError:
        return False
    return changed != flags
