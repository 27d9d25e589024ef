"""Write temporary files and folders beside their target, and then move them to it.

Each is locked (flock) while its process runs. However the process ends, the lock ends with it. So
the next write to the same path can remove abandoned temporary files, and keep those that another
process is still writing.
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

if sys.platform != "win32":  # on Windows, nothing is locked, so nothing is removed
    import fcntl

_ENDING = re.compile(r"\.[0-9a-f]{12}\.partial$")
_ATTEMPTS = 3
_SETTLED = 10.0
"""Seconds after which a file that is not locked is considered abandoned."""

_LONGEST_STEM = 200
"""Largest length in bytes. With its ending, a name stays below 255, the limit of most file
systems."""


def name_beside(target: str, ending: str = "partial") -> str:
    """Return a new hidden name beside `target`, for a temporary file of this target.

    `sweep` may remove files whose names end with ``partial``.
    """
    import secrets

    return f"{_stem(target)}.{secrets.token_hex(6)}.{ending}"


@contextlib.contextmanager
def folder(target: str) -> Iterator[str]:
    """Create a locked folder beside `target`, and remove it at the end unless it was renamed.

    Folders that earlier runs for the same target left are removed first.

    Yields:
        the path of the folder.

    Raises:
        OSError: the operating system reported an error.
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
    """Create a locked file beside `target`, and remove it at the end unless it was renamed.

    Args:
        sweeps: first remove files that earlier runs for the same target left.

    Yields:
        The path of the file, and a descriptor for writing, which the caller must close.

    Raises:
        OSError: the operating system reported an error.
    """
    if sweeps:
        sweep(target)
    path, descriptor = _made_and_locked(target, _new_file, _mode(target, 0o666))
    keeps_lock = sys.platform != "win32"  # on Windows, an open file cannot be renamed
    try:
        # The caller closes a duplicate, so that the lock stays.
        yield path, os.dup(descriptor) if keeps_lock else descriptor
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    except BaseException:
        _remove(path)
        raise
    finally:
        if keeps_lock:
            os.close(descriptor)


def target_of(temporary: str) -> str | None:
    """Return the final name that is part of a temporary file's name, or None for other files."""
    name, count = _ENDING.subn("", temporary)
    return name.removeprefix(".") if count else None


def sweep(target: str) -> None:
    """Remove the temporary files and folders beside `target` that no running process has locked.

    Those of other targets are kept for `_SETTLED` seconds, because their writers may not have
    locked them yet. (A writer of `target` tries again if another one removes its file.) An
    abandoned file is never renamed to `target`, because anybody may have created it.
    """
    if target in _swept.get():
        return
    where, stem = os.path.split(_stem(target))
    if any(map(_ENDING.search, where.split(os.sep))):
        return  # in a new temporary folder: listing it for each file would take quadratic time
    _sweep_folder(where, {stem})


@contextlib.contextmanager
def swept(targets: Iterable[str]) -> Iterator[None]:
    """Sweep for many targets at once.

    In the block, writing to one of these targets does not list its folder again, because this would
    take quadratic time for all targets.
    """
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


def move_if_free(temporary: str, target: str) -> bool:
    """Rename a folder to `target` if that does not exist or is an empty folder.

    Returns:
        Whether it was renamed. If `target` is anything else, nothing is renamed.

    Raises:
        OSError: the operating system reported an error.
    """
    try:
        os.rename(temporary, target)
    except OSError as error:
        if error.errno in _SOMETHING_THERE and os.path.lexists(target):
            return sys.platform == "win32" and _move_over_empty(temporary, target)
        raise
    return True


def replace_folder(temporary: str, target: str) -> None:
    """Exchange the folder `temporary` with the existing folder `target`.

    On Linux the two names are exchanged in one step. Other systems need several renames, and for a
    moment `target` does not exist. If the second rename fails, the first one is undone. If the
    process is killed between them, the old folder is left as ``.NAME.….replaced``.

    Raises:
        NotADirectoryError: `target` is not a folder.
        OSError: the operating system reported an error.
    """
    if not os.path.isdir(target):
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory")
    if exchange(temporary, target):
        return
    _replace_by_renames(temporary, target)


def exchange(one: str, other: str) -> bool:
    """Exchange two names in one step (renameat2, Linux 3.15). Return whether this succeeded."""
    if not sys.platform.startswith("linux"):
        return False
    here, flag = -100, 2  # AT_FDCWD, RENAME_EXCHANGE: linux/fcntl.h, linux/fs.h
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(call(here, os.fsencode(one), here, os.fsencode(other), flag) == 0)


_SOMETHING_THERE = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_BINARY = getattr(os, "O_BINARY", 0)


def _stem(target: str) -> str:
    where, name = os.path.split(target)
    while len(os.fsencode(name)) > _LONGEST_STEM:
        name = name[:-1]
    return os.path.join(where, f".{name}")


def _mode(target: str, usual: int) -> int:
    """Return the permissions, before the umask, of a temporary file or folder.

    If it will replace something, only its owner has access, until `storage` copies the permissions
    of what it replaces.
    """
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
    """Return the path of a new file or folder, and the open descriptor that holds its lock.

    On a system without locks, it is not locked, and nothing is removed by `sweep`.
    """
    for _ in range(_ATTEMPTS if sys.platform != "win32" else 0):
        # Between creation and locking, another process may consider it abandoned and remove it.
        path = name_beside(target)
        with contextlib.suppress(FileNotFoundError):
            descriptor = make(path, mode)
            if _lock(descriptor, path):
                return path, descriptor
            os.close(descriptor)
            _remove(path)
    path = name_beside(target)
    return path, make(path, mode)


def _move_over_empty(temporary: str, target: str) -> bool:
    """Remove the empty folder `target`, and then rename, because Windows cannot replace a
    folder."""
    try:
        os.rmdir(target)  # fails unless it is an empty folder
    except OSError:
        return False
    os.rename(temporary, target)
    return True


def _replace_by_renames(temporary: str, target: str) -> None:
    old = name_beside(target, "replaced")
    os.rename(target, old)
    try:
        os.rename(temporary, target)
    except BaseException:
        os.rename(old, target)
        raise
    os.rename(old, temporary)


def _is_settled(path: str) -> bool:
    """Return whether a file was last changed more than `_SETTLED` seconds ago."""
    return time.time() - os.lstat(path).st_mtime > _SETTLED


def _remove_if_abandoned(path: str) -> None:
    try:
        # O_NONBLOCK: opening a named pipe would wait for a writer.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, flags)
    except OSError:
        return
    try:
        if _lock(descriptor, path):
            _remove(path)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: str) -> bool:
    """Lock a file or folder. Return whether this succeeded.

    It fails if another process holds the lock, if `path` is another file by now, if it is neither a
    file nor a folder, or if the system has no locks.
    """
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
    """Remove a file or folder, if the system allows it."""
    with contextlib.suppress(OSError):  # rmtree raises some errors in spite of ignore_errors
        if os.path.isdir(path) and not os.path.islink(path):
            import shutil

            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)
