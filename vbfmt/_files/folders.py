"""Fill a temporary folder, and move it to its final path in one step."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from vbfmt._files import PathLike, staging, storage
from vbfmt.errors import VbfmtError


@contextlib.contextmanager
def new(path: PathLike, *, overwrite: bool, whole: bool = False) -> Iterator[str]:
    """Create a temporary folder. If the block succeeds, rename it to `path`, else remove it.

    With `overwrite`, when all new files are complete, they replace the files with the same names in
    an existing folder. Its other files stay. If there are no other files, the whole folder is
    replaced in one step (on Linux). Otherwise, the files are replaced one by one, and if one cannot
    be replaced, the others are restored. Permissions are kept.

    Args:
        whole: with `overwrite`, replace the existing folder and all of its files in one step.

    Yields:
        The path of the temporary folder.

    Raises:
        OutputExistsError: `path` exists, is not an empty folder, and `overwrite` is not set.
        StorageError: the operating system reported an error.
    """
    storage.require_path(path, "cannot write")
    target = os.path.realpath(path)
    if not overwrite:
        storage.require_absent(path)
    with storage.refusing("cannot write", path):
        with staging.folder(target) as temporary:
            try:
                yield temporary
            except VbfmtError as error:
                raise _renamed(error, temporary, os.fspath(path)) from None
            storage.sync_folder(temporary)
            if os.path.isdir(target):
                if not whole:
                    _keep_permissions_of_files(target, temporary)
                # This comes last, because the folder is private until then.
                storage.keep_permissions(target, temporary)
            if not staging.move_if_free(temporary, target):
                if not overwrite:
                    raise storage.already_there(path)
                (staging.replace_folder if whole else _move_in)(temporary, target)
        storage.sync_folder(os.path.dirname(target))


def _keep_permissions_of_files(target: str, temporary: str) -> None:
    for name in _names_in(target).intersection(os.listdir(temporary)):
        if not os.path.isdir(os.path.join(target, name)):
            storage.keep_permissions(os.path.join(target, name), os.path.join(temporary, name))


def _renamed(error: VbfmtError, temporary: str, path: str) -> VbfmtError:
    """Return the error with a file's final path instead of its path in the temporary folder."""
    if error.file is not None and error.file.startswith(temporary):
        error.file = path + error.file[len(temporary) :]
    return error


def _move_in(temporary: str, target: str) -> None:
    """Move the files of `temporary` into `target`, whose other files stay."""
    names = sorted(os.listdir(temporary))
    old = _names_in(target)
    for name in old.intersection(names):
        if os.path.isdir(os.path.join(target, name)):
            raise IsADirectoryError(errno.EISDIR, f"{name} is a folder there")
    if old.issubset(names) and os.access(target, os.W_OK) and staging.exchange(temporary, target):
        # Files that another process may have created meanwhile:
        for name in _names_in(temporary).difference(names):
            os.replace(os.path.join(temporary, name), os.path.join(target, name))
        return
    moved: list[str] = []
    try:
        for name in names:
            moved.append(name)
            _move_file_in(temporary, target, name)
    except BaseException:
        for name in moved:
            _move_file_back(temporary, target, name)
        raise
    storage.sync_folder(target)


def _move_file_in(temporary: str, target: str, name: str) -> None:
    """Move a file into `target`. A file that it replaces is kept in `temporary`."""
    there, kept = os.path.join(target, name), _kept(temporary, name)
    try:
        os.link(there, kept, follow_symlinks=False)
    except FileNotFoundError:
        pass
    except (OSError, NotImplementedError):  # a file system without hard links
        os.replace(there, kept)
    os.replace(os.path.join(temporary, name), there)


def _move_file_back(temporary: str, target: str, name: str) -> None:
    """Undo `_move_file_in`, as far as the system allows."""
    there, kept = os.path.join(target, name), _kept(temporary, name)
    new = os.path.join(temporary, name)
    with contextlib.suppress(OSError):
        if os.path.lexists(kept):
            os.replace(kept, there)
        elif not os.path.lexists(new):
            os.replace(there, new)


def _kept(temporary: str, name: str) -> str:
    return os.path.join(temporary, f".{name}.kept")


def _names_in(folder: str) -> set[str]:
    """Return the names in a folder; none if another process has just removed the folder."""
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()
