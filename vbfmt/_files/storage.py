"""Read or memory-map a file, and replace a file durably and in one step."""

from __future__ import annotations

import contextlib
import errno
import mmap as mapping
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from vbfmt._files import PathLike, direct, staging
from vbfmt._format.container import Bytes
from vbfmt.errors import MissingFileError, OutputExistsError, StorageError, VbfmtError


def read(path: PathLike, *, mmap: bool, most: int | None = None) -> memoryview:
    """Return the bytes of a regular file, mapped or read, up to its reported size.

    Args:
        most: read at most this many bytes; None for all. A mapped file is mapped completely.

    Raises:
        StorageError: the file cannot be read, or is not a regular file.
    """
    require_path(path, "cannot read")
    try:
        # O_NONBLOCK: opening a named pipe would wait for a writer.
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
        try:
            return _read_descriptor(file, path, mmap=mmap, most=most)
        finally:
            os.close(file)
    except OSError as error:
        if os.path.isdir(path):  # Windows refuses to open a folder
            raise _no_file(path, "a folder") from None
        raise refusal("cannot read", path, error) from None


def write(
    path: PathLike,
    pieces: Iterable[Bytes],
    *,
    overwrite: bool,
    past_cache: bool = False,
    sweeps: bool = True,
) -> int:
    """Write a file completely or not at all.

    The bytes are written to a temporary file in the same folder, which is flushed to the disk and
    renamed. A symbolic link is followed. An existing file keeps its permissions; a new one gets
    those of the umask.

    Args:
        past_cache: bypass the page cache. This is for very large files.
        sweeps: remove temporary files that killed processes left. This lists the folder.

    Returns:
        The number of written bytes.

    Raises:
        OutputExistsError: `path` exists and `overwrite` is not set.
        StorageError: the operating system reported an error, or `path` is a device or pipe. An
            existing file is unchanged, except if only the final flush of the folder failed.
    """
    require_path(path, "cannot write")
    target = _target_of(path)
    if overwrite:
        _require_no_device(target, path)
    else:
        require_absent(path)
    try:
        with staging.file(target, sweeps=sweeps) as (temporary, file):
            with os.fdopen(file, "wb") as stream:
                if overwrite:
                    keep_permissions(target, stream.fileno())
                length = _fill(stream, pieces, past_cache=past_cache)
            _put_in_place(temporary, target, overwrite=overwrite)
        sync_folder(os.path.dirname(target))
    except FileExistsError:
        raise already_there(path) from None
    except OSError as error:
        raise refusal("cannot write", path, error) from None
    return length


def write_in_new_folder(
    path: PathLike, pieces: Iterable[Bytes], *, past_cache: bool = False
) -> int:
    """Write a file to a folder from `folders.new`, which no other process uses.

    The file is flushed to the disk, but its folder is not. `folders.new` flushes the folder once at
    the end; the caller flushes folders in it with `sync_folder`.

    Args and Returns: as for `write`.

    Raises:
        OutputExistsError: `path` exists.
        StorageError: the operating system reported an error.
    """
    require_path(path, "cannot write")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY
        with os.fdopen(os.open(path, flags, 0o666), "wb") as stream:
            return _fill(stream, pieces, past_cache=past_cache)
    except FileExistsError:
        raise already_there(path) from None
    except OSError as error:
        raise refusal("cannot write", path, error) from None


def require_path(path: PathLike, what: str) -> None:
    """Refuse text that cannot be a path. Python itself would raise a ValueError."""
    try:
        valid = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:  # a lone surrogate
        valid = False
    if not valid:
        raise StorageError(
            what, file=path, found="a character that no file name can have", expected="a path"
        )


def require_absent(path: PathLike) -> None:
    """Check that nothing would be overwritten, except an empty folder.

    Raises:
        OutputExistsError: `path` exists and is not an empty folder.
    """
    if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise already_there(path)


def already_there(path: PathLike) -> OutputExistsError:
    """Return the error for output that exists."""
    return OutputExistsError(
        "the output exists already",
        file=path,
        advice="choose another name or give `overwrite=True`",
    )


def refusal(what: str, path: PathLike, error: OSError) -> VbfmtError:
    """Return a `StorageError` for an OSError. Return a `VbfmtError` unchanged."""
    if isinstance(error, VbfmtError):
        return error
    kind = MissingFileError if isinstance(error, FileNotFoundError) else StorageError
    reason = error.strerror or type(error).__name__
    in_use = getattr(error, "winerror", None) in _IN_USE
    advice = "close other programs that use it, and adapters that are loaded from it"
    return kind(what, file=path, found=reason, errno=error.errno, advice=advice if in_use else None)


@contextlib.contextmanager
def refusing(what: str, path: PathLike) -> Iterator[None]:
    """Raise the `refusal` of an OSError in the block."""
    try:
        yield
    except OSError as error:
        raise refusal(what, path, error) from None


_IN_USE = (5, 32, 1224)
"""Error codes of Windows for replacing or removing a file that is open or mapped: access denied,
sharing violation, mapped section."""


def keep_permissions(target: str, new: str | int) -> None:
    """Give a new file or folder, by path or descriptor, the permissions of `target` if it exists.

    On Windows, do nothing: files have no permissions except read-only there, and a read-only file
    cannot be replaced.
    """
    if sys.platform == "win32":
        return
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(target).st_mode
        # A set-user-ID bit is not kept: the new file may have another owner.
        mode = stat.S_IMODE(found) if stat.S_ISDIR(found) else found & 0o777
        os.chmod(new, mode)


def sync(file: int) -> None:
    """Flush a file to the disk. Unlike fsync, this also flushes the disk's own cache on macOS.

    Args:
        file: a descriptor.

    Raises:
        OSError: flushing failed.
    """
    if sys.platform == "darwin":
        import fcntl

        with contextlib.suppress(OSError):  # the file system cannot do it
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)
            return
    os.fsync(file)


def sync_folder(path: str) -> None:
    """Flush a folder's entries to the disk, if the system can.

    Raises:
        OSError: flushing failed.
    """
    try:
        folder = os.open(path or ".", os.O_RDONLY)
    except PermissionError:  # Windows, or a folder that may be written to but not read
        return
    try:
        sync(folder)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
    finally:
        os.close(folder)


_CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM)
"""Errors of file systems that cannot flush folders."""

_BINARY = getattr(os, "O_BINARY", 0)


def _read_descriptor(file: int, path: PathLike, *, mmap: bool, most: int | None) -> memoryview:
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        raise _no_file(path, "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    if mmap and status.st_size:
        with contextlib.suppress(ValueError):  # the file was emptied after it was opened
            return memoryview(mapping.mmap(file, 0, access=mapping.ACCESS_READ))
    with os.fdopen(os.dup(file), "rb") as stream:
        # Read no more than its size: files in /proc report 0, and some of them are endless.
        size = status.st_size if most is None else min(most, status.st_size)
        return memoryview(stream.read(size))


def _no_file(path: PathLike, found: str) -> StorageError:
    folder = found == "a folder"
    advice = "pack a checkpoint first: vbfmt pack CHECKPOINT -o FILE.vblora" if folder else None
    return StorageError("cannot read", file=path, found=found, expected="a file", advice=advice)


def _fill(stream: BinaryIO, pieces: Iterable[Bytes], *, past_cache: bool) -> int:
    """Write the pieces into an open file and flush it to the disk; return the bytes written."""
    length = 0

    def counted() -> Iterator[Bytes]:
        nonlocal length
        for piece in pieces:
            length += len(piece)
            yield piece

    if past_cache:
        direct.write(stream.fileno(), counted())
    else:
        stream.writelines(counted())
    stream.flush()
    sync(stream.fileno())
    return length


def _target_of(path: PathLike) -> str:
    """Return the file that a path names, after following a symbolic link."""
    plain = os.path.basename(path) and not os.path.islink(path)
    return os.fspath(path) if plain else os.path.realpath(path)


def _require_no_device(target: str, path: PathLike) -> None:
    """Refuse a device (``/dev/null``) or a pipe, because renaming would replace it by a regular
    file."""
    try:
        mode = os.stat(target).st_mode
    except OSError:  # missing, or writing will report what is wrong
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise StorageError(
            "cannot write", file=path, found="a device or pipe", expected="a regular file"
        )


def _put_in_place(temporary: str, target: str, *, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)  # unlike rename, fails if another writer was faster
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError from None
        os.replace(temporary, target)
