"""Files: reading or mapping one, and replacing one durably and in one step."""

from __future__ import annotations

import contextlib
import errno
import mmap as mapping
import os
import stat
import sys
from collections.abc import Iterable, Iterator

from vbfmt._files import direct, staging
from vbfmt._format.container import Bytes
from vbfmt.errors import MissingFileError, OutputExistsError, StorageError, VbfmtError

PathLike = str | os.PathLike[str]


def read(path: PathLike, *, mmap: bool) -> memoryview:
    """Return the bytes of a regular file, as many as it says: mapped in place, or read.

    Raises:
        StorageError: it cannot be read, or is no regular file.
    """
    _require_a_path(path, "cannot read")
    try:
        # O_NONBLOCK: opening a named pipe would wait for a writer.
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
        try:
            return _read_descriptor(file, path, mmap=mmap)
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
    """Write a file whole or not at all: a temporary file beside it, flushed to the disk, renamed.

    A symbolic link is followed; an existing file keeps its permissions, a new one gets the umask's.
    What a killed process left beside it is removed.

    Args:
        past_cache: do not fill the page cache with it: for files of gigabytes.
        sweeps: remove what a killed process left; that lists the folder.

    Returns:
        bytes written.

    Raises:
        OutputExistsError: it exists and `overwrite` is not set.
        StorageError: the operating system refused, or a device or pipe is there; an older file is
            untouched, unless all that failed was to flush the folder in the end.
    """
    _require_a_path(path, "cannot write")
    target = _target_of(path)
    if overwrite:
        _require_no_device(target, path)
    else:
        require_absent(path)
    length = 0

    def counted() -> Iterator[Bytes]:
        nonlocal length
        for piece in pieces:
            length += len(piece)
            yield piece

    try:
        with staging.file(target, sweeps=sweeps) as (temporary, file):
            with os.fdopen(file, "wb") as stream:
                if overwrite:
                    _keep_permissions(target, stream.fileno())
                if past_cache:
                    direct.write(stream.fileno(), counted())
                else:
                    stream.writelines(counted())
                stream.flush()
                sync(stream.fileno())
            _put_in_place(temporary, target, overwrite=overwrite)
        sync_folder(os.path.dirname(target))
    except FileExistsError:
        raise already_there(path) from None
    except OSError as error:
        raise refusal("cannot write", path, error) from None
    return length


@contextlib.contextmanager
def new_folder(path: PathLike, *, overwrite: bool, whole: bool = False) -> Iterator[str]:
    """A temporary folder that becomes `path` when the block ends well, and vanishes if not.

    With `overwrite`, files of the same names in an existing folder are replaced after all of the
    new ones are complete, and its other files stay. If there are no others, all are replaced in one
    step (on Linux), else one after the other, each in one step. Permissions stay.

    Args:
        whole: with `overwrite`, replace the existing folder and all that is in it, in one step.

    Raises:
        OutputExistsError: it exists (other than as an empty folder) and `overwrite` is not set.
        StorageError: the operating system refused.
    """
    _require_a_path(path, "cannot write")
    target = os.path.realpath(path)
    if not overwrite:
        require_absent(path)
    try:
        with staging.folder(target) as temporary:
            try:
                yield temporary
            except VbfmtError as error:
                raise _renamed(error, temporary, os.fspath(path)) from None
            sync_folder(temporary)
            if os.path.isdir(target):
                if not whole:
                    _keep_permissions_of_files(target, temporary)
                _keep_permissions(target, temporary)  # last: until then the folder is private
            if not staging.placed(temporary, target):
                if not overwrite:
                    raise already_there(path)
                (staging.put_whole if whole else _move_in)(temporary, target)
        sync_folder(os.path.dirname(target))
    except VbfmtError:
        raise
    except OSError as error:
        raise refusal("cannot write", path, error) from None


def require_absent(path: PathLike) -> None:
    """Refuse to go on where something would be overwritten; an empty folder is nothing.

    Raises:
        OutputExistsError
    """
    if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise already_there(path)


def already_there(path: PathLike) -> OutputExistsError:
    """The error for output that exists."""
    return OutputExistsError(
        "the output exists already",
        file=path,
        advice="choose another name or give `overwrite=True`",
    )


def refusal(what: str, path: PathLike, error: OSError) -> VbfmtError:
    """Return the error for what the operating system refused; one of ours stays as it is."""
    if isinstance(error, VbfmtError):
        return error
    kind = MissingFileError if isinstance(error, FileNotFoundError) else StorageError
    reason = error.strerror or type(error).__name__
    in_use = getattr(error, "winerror", None) in _IN_USE
    advice = "close what has it open: programs, and adapters that are loaded from it"
    return kind(what, file=path, found=reason, errno=error.errno, advice=advice if in_use else None)


_IN_USE = (5, 32, 1224)
"""What Windows answers where a file that is open, or mapped, would be replaced or removed: access
denied, a sharing violation, a mapped section."""


def sync(file: int) -> None:
    """Flush a file to the disk; on macOS out of the disk's own cache too, where fsync leaves it.

    Args:
        file: a descriptor.

    Raises:
        OSError: it failed.
    """
    if sys.platform == "darwin":
        import fcntl

        with contextlib.suppress(OSError):  # a file system that cannot
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)
            return
    os.fsync(file)


def sync_folder(path: str) -> None:
    """Flush a folder's entries to the disk, where the system can.

    Raises:
        OSError: it can, and failed.
    """
    try:
        folder = os.open(path or ".", os.O_RDONLY)
    except PermissionError:  # Windows; a folder that may be written but not read
        return
    try:
        sync(folder)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
    finally:
        os.close(folder)


_CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM)
"""What file systems answer that do not flush folders."""

_BINARY = getattr(os, "O_BINARY", 0)


def _read_descriptor(file: int, path: PathLike, *, mmap: bool) -> memoryview:
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        raise _no_file(path, "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file")
    if mmap and status.st_size:
        with contextlib.suppress(ValueError):  # emptied since it was opened
            return memoryview(mapping.mmap(file, 0, access=mapping.ACCESS_READ))
    with os.fdopen(os.dup(file), "rb") as stream:
        # No more than its size: files in /proc say 0, and some of them have no end.
        return memoryview(stream.read(status.st_size))


def _no_file(path: PathLike, found: str) -> StorageError:
    advice = "pack a checkpoint first: vbfmt pack" if found == "a folder" else None
    return StorageError("cannot read", file=path, found=found, expected="a file", advice=advice)


def _require_a_path(path: PathLike, what: str) -> None:
    """Some texts name no file: Python refuses them by errors of its own."""
    try:
        sound = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:  # half a surrogate pair
        sound = False
    if not sound:
        raise StorageError(
            what, file=path, found="a character that no file's name can have", expected="a path"
        )


def _target_of(path: PathLike) -> str:
    """The file that a path names: a symbolic link is followed."""
    plain = os.path.basename(path) and not os.path.islink(path)
    return os.fspath(path) if plain else os.path.realpath(path)


def _require_no_device(target: str, path: PathLike) -> None:
    """Renaming would make a plain file of a device (``/dev/null``) or a pipe."""
    try:
        mode = os.stat(target).st_mode
    except OSError:  # nothing there, or writing will say what is wrong
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise StorageError(
            "cannot write", file=path, found="a device or pipe", expected="a regular file"
        )


def _keep_permissions(target: str, new: str | int) -> None:
    """Give what is new, by name or descriptor, the permissions of what it replaces, if that is
    there. On Windows they say only whether a file is read-only, and one that is cannot be
    replaced."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(target).st_mode
        # A set-user-ID bit would now be this user's.
        mode = stat.S_IMODE(found) if stat.S_ISDIR(found) else found & 0o777
        if not isinstance(new, int):
            os.chmod(new, mode)
        else:
            os.fchmod(new, mode)


def _keep_permissions_of_files(target: str, temporary: str) -> None:
    for name in _names_in(target).intersection(os.listdir(temporary)):
        if not os.path.isdir(os.path.join(target, name)):
            _keep_permissions(os.path.join(target, name), os.path.join(temporary, name))


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


def _renamed(error: VbfmtError, temporary: str, path: str) -> VbfmtError:
    """The error, naming a file as the user knows it, not by the folder in the making."""
    if error.file is not None and error.file.startswith(temporary):
        error.file = path + error.file[len(temporary) :]
    return error


def _move_in(temporary: str, target: str) -> None:
    """Put the new folder's files in place, so that the old folder's other files
    stay."""
    names = sorted(os.listdir(temporary))
    old = _names_in(target)
    for name in old.intersection(names):
        if os.path.isdir(os.path.join(target, name)):
            raise IsADirectoryError(errno.EISDIR, f"{name} is a folder there")
    if old.issubset(names) and os.access(target, os.W_OK) and staging.exchanged(temporary, target):
        for name in _names_in(temporary).difference(names):  # came in this moment
            os.replace(os.path.join(temporary, name), os.path.join(target, name))
        return
    for name in names:
        os.replace(os.path.join(temporary, name), os.path.join(target, name))
    sync_folder(target)


def _names_in(folder: str) -> set[str]:
    """What is in a folder that another writer may just be replacing or removing."""
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()
