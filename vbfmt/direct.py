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
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from vbfmt.container import Bytes

_BLOCK = 1 << 22
_ALIGNMENT = 4096
_BUFFERS = 2


def write(file: int, pieces: Iterable[Bytes]) -> None:
    """Write bytes to an empty file as they come: one block goes out while the next one fills.

    Where the file system knows no direct writing, it is done through the page cache.

    Args:
        file: a descriptor, open for writing.

    Raises:
        OSError
    """
    _set_direct(file, True)
    with ThreadPoolExecutor(1) as pool:
        pending: Future[None] | None = None
        for block in _blocks(pieces):
            if pending:
                pending.result()
            pending = pool.submit(_write_block, file, block)
        if pending:
            pending.result()


def _blocks(pieces: Iterable[Bytes]) -> Iterator[NDArray[np.uint8]]:
    """The bytes of `pieces` in aligned memory. A block is valid until the next but one is asked
    for; all but the last have the full size."""
    # An anonymous map begins at a page.
    buffers = [np.frombuffer(mmap.mmap(-1, _BLOCK), np.uint8) for _ in range(_BUFFERS)]
    turn, filled = 0, 0
    for piece in pieces:
        rest = np.frombuffer(piece, np.uint8)
        while len(rest):
            count = min(len(rest), _BLOCK - filled)
            buffers[turn][filled : filled + count] = rest[:count]
            rest = rest[count:]
            filled += count
            if filled == _BLOCK:
                yield buffers[turn]
                turn, filled = (turn + 1) % _BUFFERS, 0
    if filled:
        yield buffers[turn][:filled]


def _write_block(file: int, block: NDArray[np.uint8]) -> None:
    rest = block.data
    while rest:
        if len(rest) % _ALIGNMENT:  # the end of the file, or of what the disk took
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
