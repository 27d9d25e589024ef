"""Folders in the making: temporary siblings of the folder that they are to become.

Each is locked (flock) for as long as its process lives. The lock dies with the process, however it
dies, so that the next run for the same folder can tell what is abandoned from what somebody else is
still writing, and removes the former.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator

if sys.platform != "win32":  # there nothing is locked, and so nothing is swept
    import fcntl

_ENDING = re.compile(r"\.[0-9a-f]{12}\.partial$")
_ATTEMPTS = 3


def name_beside(target: str) -> str:
    """A new hidden name in the folder of `target`, recognisable as a temporary one of its."""
    return f"{_stem(target)}.{secrets.token_hex(6)}.partial"


@contextlib.contextmanager
def folder(target: str) -> Iterator[str]:
    """A new, locked folder beside `target`, removed in the end unless it was renamed.

    Those that earlier runs for the same target left behind are removed first.

    Raises:
        OSError
    """
    sweep(target)
    path, lock = _made_and_locked(target)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def sweep(target: str) -> None:
    """Remove the temporary folders of `target` that no living process holds."""
    where, stem = os.path.split(_stem(target))
    with contextlib.suppress(OSError):
        for name in os.listdir(where or "."):
            if _ENDING.search(name) and _ENDING.sub("", name) == stem:
                _remove_if_abandoned(os.path.join(where, name))


def put_whole(temporary: str, target: str) -> None:
    """Rename a folder to `target`; one that is there already is `temporary` from then on.

    Where the system cannot exchange two names (it can on Linux), there is a moment between two
    renames with neither.

    Raises:
        OSError
    """
    if not os.path.isdir(target) or not os.listdir(target):
        os.rename(temporary, target)
        return
    if _exchanged(temporary, target):
        return
    old = name_beside(target)
    os.rename(target, old)
    os.rename(temporary, target)
    os.rename(old, temporary)


def _stem(target: str) -> str:
    where, name = os.path.split(target)
    return os.path.join(where, f".{name[:100]}")


def _made_and_locked(target: str) -> tuple[str, int]:
    """A new folder and the descriptor that holds its lock."""
    for _ in range(_ATTEMPTS):
        path = name_beside(target)
        os.mkdir(path)
        lock = _locked(path)
        if lock is not None:
            return path, lock
        # A sweeper came between the two steps and took it for abandoned, or there are no locks.
        shutil.rmtree(path, ignore_errors=True)
    path = name_beside(target)
    os.mkdir(path)
    return path, os.open(os.devnull, os.O_RDONLY)  # without locks nobody sweeps either


def _remove_if_abandoned(path: str) -> None:
    lock = _locked(path)
    if lock is not None:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _locked(path: str) -> int | None:
    """A descriptor that holds the lock of the folder at `path`, or None where it is not to be had:
    somebody else holds it, the folder has gone, or the system has no such locks."""
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _exchanged(one: str, other: str) -> bool:
    """Exchange two names in one step (renameat2, Linux 3.15); whether the system could."""
    if not sys.platform.startswith("linux"):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE: linux/fcntl.h, linux/fs.h
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(call(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
