"""Examine untrusted model folders: their files, the targets of their links, and whether a path is
inside a folder."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vbfmt._files import PathLike, storage
from vbfmt.errors import SourceError

DEEPEST = 64
"""Largest depth of nested folders."""

MOST_FILES = 100_000
"""Largest number of files and folders in a model's folder."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Entry:
    """A file, folder or link below a folder.

    Attributes:
        path: its path within the folder.
        folder: whether it is a folder. A link to a folder is not.
        link: whether it is a link.
    """

    path: str
    folder: bool
    link: bool


@dataclass(frozen=True)
class Folder:
    """A model's folder.

    Attributes:
        path: its path as given.
        home: the folder that its links must stay in; None if they may lead anywhere.
    """

    path: str
    home: str | None

    @classmethod
    def of(cls, path: str, *, follow_links: bool) -> Folder:
        """Return a folder whose links must stay in it, or in its repository's folder in the Hub's
        cache.

        Args:
            path: the folder's path.
            follow_links: let its links lead anywhere.
        """
        real = os.path.realpath(path)
        return cls(path, None if follow_links else cached_repository(real) or real)

    def file(self, name: str) -> str:
        """Return the path of a file."""
        return os.path.join(self.path, name)

    def has(self, name: str) -> bool:
        """Return whether there is a regular file with this name, or an allowed link to one.

        Raises:
            SourceError: a link is broken, as in an incomplete copy of a cache, or leads out of the
                folder.
        """
        path = self.file(name)
        if os.path.islink(path):
            self._require_good_link(name)
        return os.path.isfile(path)

    def files(self) -> Iterator[str]:
        """Yield the sorted paths of all files, without those in hidden folders (.git, .cache).

        Raises:
            SourceError, StorageError: as `tree`.
        """
        return (entry.path for entry in tree(self.path, hidden=False) if not entry.folder)

    def _require_good_link(self, name: str) -> None:
        path = self.file(name)
        if not os.path.exists(path):
            raise SourceError(
                "the base has a broken link",
                file=self.path,
                part=name,
                found=f"a link to {os.readlink(path)}",
                expected="a file",
                advice="is the base complete?",
            )
        if self.home is not None and not _is_below(os.path.realpath(path), self.home):
            raise SourceError(
                "the base has a link that points outside its folder",
                file=self.path,
                part=name,
                found=f"a link to {os.readlink(path)}",
                expected="a file inside the base's folder",
                advice="if you trust it, give `follow_links=True`, which copies the link's target",
            )


def tree(folder: str, *, hidden: bool = True) -> Iterator[Entry]:
    """Yield everything below a folder, sorted by name. Each folder comes before its content.

    Args:
        folder: the folder's path.
        hidden: include folders whose names begin with a dot.

    Raises:
        SourceError: there are more than `DEEPEST` nested folders, or more than `MOST_FILES`
            entries.
        StorageError: a folder cannot be read.
    """
    waiting = _listed(folder, "")
    count = 0
    while waiting:
        entry = waiting.pop()
        count += 1
        if count > MOST_FILES:
            raise SourceError("too many files", file=folder, expected=f"at most {MOST_FILES}")
        if entry.folder and not hidden and os.path.basename(entry.path).startswith("."):
            continue
        yield entry
        if entry.folder:
            if entry.path.count(os.sep) >= DEEPEST:
                raise SourceError(
                    "folders are nested too deeply",
                    file=folder,
                    part=entry.path,
                    expected=f"at most {DEEPEST}",
                )
            waiting += _listed(folder, entry.path)


def within(inner: str, outer: str) -> bool:
    """Return whether `inner` is the folder `outer` or below it. `inner` need not exist.

    Folders are compared by device and inode, because a folder may have several paths (bind mounts).
    """
    folders = {_identity(outer)}
    folders |= {_identity(os.path.join(outer, entry.path)) for entry in tree(outer) if entry.folder}
    folders.discard(None)
    path = Path(os.path.realpath(inner))
    return any(_identity(each) in folders for each in (path, *path.parents))


def content(path: str, home: str | None = None) -> Iterator[bytes]:
    """Yield the bytes of a regular file in blocks.

    Args:
        path: the file.
        home: refuse a file that is not below this folder once it is open, because a link may have
            replaced it since it was checked. Only Linux can check this. None to accept any file.

    Raises:
        StorageError: the file is not a regular file, cannot be read, or does not have the size that
            the file system reports.
        SourceError: the file is not below `home`.
    """
    with storage.refusing("cannot read", path):
        file = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        )
        with os.fdopen(file, "rb") as stream:
            _require_below(stream.fileno(), path, home)
            status = os.fstat(stream.fileno())
            left = status.st_size
            while block := stream.read(min(_AT_ONCE, left)):
                left -= len(block)
                yield block
            if left or not stat.S_ISREG(status.st_mode) or stream.read(1):
                raise OSError(0, "its size differs from the reported size")


_AT_ONCE = 1 << 20


def _require_below(file: int, path: str, home: str | None) -> None:
    if home is None:
        return
    try:
        found = os.readlink(f"/proc/self/fd/{file}")
    except OSError:  # not Linux
        return
    if not _is_below(found, home):
        raise SourceError(
            "a file became a link that points outside the folder while it was read",
            file=path,
            found=f"a link to {found}",
            expected="a file inside the base's folder",
        )


def cached_repository(path: str) -> str | None:
    """Return the folder ``models--owner--name`` of ``models--owner--name/snapshots/<commit>``.

    This is where huggingface_hub's cache has a model. For other paths, return None.
    """
    snapshots, commit = os.path.split(path)
    repository, name = os.path.split(snapshots)
    cached = os.path.basename(repository).startswith("models--")
    return repository if name == "snapshots" and cached and _COMMIT.fullmatch(commit) else None


def _is_below(path: str, folder: str) -> bool:
    """Return whether a path is below a folder, judged by the names only. Neither may contain
    links."""
    return path.startswith(os.path.join(folder, ""))


def _listed(folder: str, within: str) -> list[Entry]:
    """Return the entries of a folder below `folder`, in reverse order of their names."""
    path = os.path.join(folder, within)
    with storage.refusing("cannot read", path), os.scandir(path) as entries:
        return [
            Entry(
                os.path.join(within, found.name),
                found.is_dir(follow_symlinks=False),
                found.is_symlink(),
            )
            for found in sorted(entries, key=lambda found: found.name, reverse=True)
        ]


def _identity(path: PathLike) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
