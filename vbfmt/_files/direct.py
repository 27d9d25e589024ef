"""Long files past the page cache (O_DIRECT, Linux).

A file that is flushed to the disk before it counts gains nothing from the page cache: its pages
are found, filled, written back and kept in place of somebody's who needs them. Written directly, a
model of gigabytes takes a fraction of the processor's time.
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
    """Write bytes to an empty file as they come: one block goes out while the next one is made.

    From a block on that does not begin at a page in memory or, save the last, has a size that is no
    multiple of `ALIGNMENT`, and where the file system knows no direct writing, it is done through
    the page cache.

    Args:
        file: a descriptor, open for writing.
        blocks: each stays as it is until the next but one is asked for.

    Raises:
        OSError
    """
    from concurrent.futures import ThreadPoolExecutor  # costs more than all of this file

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
    """Memory that can be written directly: (size,) uint8, zero."""
    return np.frombuffer(mmap.mmap(-1, size), np.uint8)  # an anonymous map begins at a page


def _write_block(file: int, block: Bytes) -> None:
    rest = memoryview(block).cast("B")
    while rest:
        if len(rest) % ALIGNMENT:  # the end of the file, or of what the disk took
            _set_direct(file, False)
        try:
            rest = rest[os.write(file, rest) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not _set_direct(file, False):
                raise


def _set_direct(file: int, wanted: bool) -> bool:
    """Switch direct writing on or off; whether that changed anything."""
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
