"""Temporary files and folders: written beside their target, then moved to it.

Each is locked (flock) for as long as its process lives. The lock ends with the process, however it
ends. So the next write to the same path knows which ones are abandoned, and removes them, and which
ones another process is still writing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar

if sys.platform != "win32":  # there nothing is locked, and so nothing is swept
    import fcntl

_ENDING = re.compile(r"\.[0-9a-f]{12}\.partial$")
_ATTEMPTS = 3
_SETTLED = 10.0
_LONGEST_STEM = 200
"""Bytes: with the ending below 255, what most file systems take."""


def name_beside(target: str, ending: str = "partial") -> str:
    """Return a new hidden name in the folder of `target`, recognisable as a temporary one of its.

    What ends with ``partial`` may be removed by `sweep`.
    """
    import secrets

    return f"{_stem(target)}.{secrets.token_hex(6)}.{ending}"


@contextlib.contextmanager
def folder(target: str) -> Iterator[str]:
    """A new, locked folder beside `target`, removed in the end unless it was renamed.

    What earlier runs for the same target left behind is removed first.

    Raises:
        OSError
    """
    sweep(target)
    path, lock = _made_and_locked(target, _new_folder, _mode(target, 0o777))
    try:
        yield path
    finally:
        _remove(path)
        os.close(lock)


@contextlib.contextmanager
def file(target: str, *, sweeps: bool = True) -> Iterator[tuple[str, int]]:
    """A new, locked file beside `target`, removed in the end unless it was renamed: its path, and
    a descriptor for writing that the caller closes.

    Args:
        sweeps: remove first what earlier runs for the same target left behind.

    Raises:
        OSError
    """
    if sweeps:
        sweep(target)
    path, descriptor = _made_and_locked(target, _new_file, _mode(target, 0o666))
    own = sys.platform != "win32"  # there an open file cannot be renamed
    try:
        yield path, os.dup(descriptor) if own else descriptor  # the lock outlives its closing
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    except BaseException:
        _remove(path)
        raise
    finally:
        if own:
            os.close(descriptor)


def target_of(temporary: str) -> str | None:
    """Return the final name that the name of a temporary file contains, None for other files."""
    name, count = _ENDING.subn("", temporary)
    return name.removeprefix(".") if count else None


def sweep(target: str) -> None:
    """Remove the temporary files and folders beside `target` that no living process holds.

    Those of other targets are left alone for `_SETTLED` seconds: a writer of theirs may have made
    one and not yet locked it. (Writers of one target reckon with that.) Nothing is put in place of
    `target`: anybody may have made a folder of any name.
    """
    if target in _swept.get():
        return
    where, stem = os.path.split(_stem(target))
    if any(map(_ENDING.search, where.split(os.sep))):
        return  # a folder in the making was empty; listing it for each file takes quadratic time
    _sweep_folder(where, {stem})


@contextlib.contextmanager
def swept(targets: Iterable[str]) -> Iterator[None]:
    """Sweep for many targets at once: writing them in this block does not list their folder again,
    which would take quadratic time."""
    stems: dict[str, set[str]] = {}
    known = set()
    for target in targets:
        real = os.path.realpath(target)
        known |= {target, real}
        where, stem = os.path.split(_stem(real))
        stems.setdefault(where, set()).add(stem)
    for where, several in stems.items():
        _sweep_folder(where, several)
    token = _swept.set(_swept.get() | known)
    try:
        yield
    finally:
        _swept.reset(token)


_swept: ContextVar[frozenset[str]] = ContextVar("_swept", default=frozenset())


def _sweep_folder(where: str, stems: set[str]) -> None:
    with contextlib.suppress(OSError):
        for name in os.listdir(where or "."):
            if not name.startswith(".") or not _ENDING.search(name):
                continue
            path = os.path.join(where, name)
            if _ENDING.sub("", name) in stems or _is_settled(path):
                _remove_if_abandoned(path)


def placed(temporary: str, target: str) -> bool:
    """Rename a folder to where nothing is, or an empty folder; False where there is something.

    Raises:
        OSError
    """
    try:
        os.rename(temporary, target)
    except OSError as error:
        if error.errno in _SOMETHING_THERE and os.path.lexists(target):
            return sys.platform == "win32" and _placed_over_empty(temporary, target)
        raise
    return True


def put_whole(temporary: str, target: str) -> None:
    """Rename a folder to `target`, where there is another: that is `temporary` from then on.

    Where the system cannot exchange two names (it can on Linux), there is a moment between two
    renames with neither: if the second one fails, the first is undone; if the process is killed
    there, the old folder is left beside, as ``.NAME.….replaced``.

    Raises:
        NotADirectoryError: `target` is no folder.
        OSError
    """
    if not os.path.isdir(target):
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory")
    if exchanged(temporary, target):
        return
    _put_by_two_renames(temporary, target)


def exchanged(one: str, other: str) -> bool:
    """Exchange two names in one step (renameat2, Linux 3.15); whether the system could."""
    if not sys.platform.startswith("linux"):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE: linux/fcntl.h, linux/fs.h
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(call(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


_SOMETHING_THERE = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_BINARY = getattr(os, "O_BINARY", 0)


def _stem(target: str) -> str:
    where, name = os.path.split(target)
    while len(os.fsencode(name)) > _LONGEST_STEM:
        name = name[:-1]
    return os.path.join(where, f".{name}")


def _mode(target: str, usual: int) -> int:
    """Permissions, before the umask, of what is in the making: what replaces something is its
    owner's alone until it gets the permissions of that."""
    try:
        os.stat(target)
    except (FileNotFoundError, NotADirectoryError):
        return usual
    return usual & 0o700


def _new_folder(path: str, mode: int) -> int:
    os.mkdir(path, mode)
    return os.open(os.devnull if sys.platform == "win32" else path, os.O_RDONLY)


def _new_file(path: str, mode: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, mode)


def _made_and_locked(target: str, make: Callable[[str, int], int], mode: int) -> tuple[str, int]:
    """A new file or folder, and the open descriptor that holds its lock. Where there are no locks
    nobody sweeps either."""
    for _ in range(_ATTEMPTS if sys.platform != "win32" else 0):
        # A sweeper may come between two of these steps and take it for abandoned.
        path = name_beside(target)
        with contextlib.suppress(FileNotFoundError):
            descriptor = make(path, mode)
            if _holds(descriptor, path):
                return path, descriptor
            os.close(descriptor)
            _remove(path)
    path = name_beside(target)
    return path, make(path, mode)


def _placed_over_empty(temporary: str, target: str) -> bool:
    """Do in two steps what other systems do in one: Windows renames over nothing, not even over an
    empty folder."""
    try:
        os.rmdir(target)  # fails unless it is an empty folder
    except OSError:
        return False
    os.rename(temporary, target)
    return True


def _put_by_two_renames(temporary: str, target: str) -> None:
    old = name_beside(target, "replaced")
    os.rename(target, old)
    try:
        os.rename(temporary, target)
    except BaseException:
        os.rename(old, target)
        raise
    os.rename(old, temporary)


def _is_settled(path: str) -> bool:
    """Whether nothing was made of it in the last seconds."""
    return time.time() - os.lstat(path).st_mtime > _SETTLED


def _remove_if_abandoned(path: str) -> None:
    try:
        # O_NONBLOCK: opening a named pipe would wait for a writer.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, flags)
    except OSError:
        return
    try:
        if _holds(descriptor, path):
            _remove(path)
    finally:
        os.close(descriptor)


def _holds(descriptor: int, path: str) -> bool:
    """Lock a file or folder; whether that worked. It does not where somebody else holds it, where
    it is not at `path` any more, where it is neither, and where the system has no such locks."""
    if sys.platform == "win32":
        return False
    try:
        found = os.fstat(descriptor)
        if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(found, os.lstat(path))
    except OSError:
        return False


def _remove(path: str) -> None:
    """Remove a file or folder, as far as the system lets."""
    with contextlib.suppress(OSError):  # rmtree lets some of them out even so
        if os.path.isdir(path) and not os.path.islink(path):
            import shutil

            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)
