"""Folders of models from strangers: which files they have, where their links lead, and whether two
folders are one or one lies within the other, however they are named."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from vbfmt._files import storage
from vbfmt.errors import SourceError

DEEPEST = 64
"""Folders within folders."""

MOST_FILES = 100_000
"""Files and folders in a model's folder."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Entry:
    """What stands in a folder or below it.

    Attributes:
        path: within the folder.
        folder: whether it is one itself, and no link to one.
        link: whether it is a link.
    """

    path: str
    folder: bool
    link: bool


@dataclass(frozen=True)
class Folder:
    """A model's folder.

    Attributes:
        path: as it was given.
        home: its links may lead to files below this folder only; None if they may lead anywhere.
    """

    path: str
    home: str | None

    @classmethod
    def of(cls, path: str, *, follow_links: bool) -> Folder:
        """Return a folder whose links may not leave it, or the cache of a hub that it is part of.

        Args:
            follow_links: they may lead anywhere.
        """
        return cls(path, None if follow_links else _home(os.path.realpath(path)))

    def file(self, name: str) -> str:
        """Return the path of a file."""
        return os.path.join(self.path, name)

    def has(self, name: str) -> bool:
        """Return whether there is a regular file of this name, or a link to one that may be used.

        Raises:
            SourceError: a link leads nowhere, as in an incomplete copy of a cache, or out of the
                folder.
        """
        path = self.file(name)
        if os.path.islink(path):
            self._require_good_link(name)
        return os.path.isfile(path)

    def files(self) -> Iterator[str]:
        """Yield the paths of all files within, in order, hidden folders (.git, .cache) left out.

        Raises:
            SourceError: as `tree`.
        """
        return (entry.path for entry in tree(self.path, hidden=False) if not entry.folder)

    def _require_good_link(self, name: str) -> None:
        path = self.file(name)
        if not os.path.exists(path):
            raise SourceError(
                "a broken link",
                file=self.path,
                part=name,
                found=f"a link to {os.readlink(path)}",
                expected="a file",
                advice="is the base complete?",
            )
        if self.home is not None and not _is_below(os.path.realpath(path), self.home):
            raise SourceError(
                "a link that points outside of the folder",
                file=self.path,
                part=name,
                found=f"a link to {os.readlink(path)}",
                expected="a file of the base's own",
                advice="if that is meant, give `follow_links=True`, which copies its target",
            )


def tree(folder: str, *, hidden: bool = True, most: int = MOST_FILES) -> Iterator[Entry]:
    """Yield what is in a folder and below it, each folder before its content, names in order.

    Args:
        hidden: look into folders whose names begin with a dot, too.
        most: how many there may be.

    Raises:
        SourceError: more than `DEEPEST` folders within each other, or more than `most` entries.
        StorageError: a folder cannot be read.
    """
    levels = [_listed(folder, "")]
    count = 0
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
            continue
        count += 1
        if count > most:
            raise SourceError("too many files", file=folder, expected=f"at most {most}")
        if entry.folder and not hidden and os.path.basename(entry.path).startswith("."):
            continue
        yield entry
        if entry.folder:
            if len(levels) > DEEPEST:
                raise SourceError(
                    "folders too deep within each other",
                    file=folder,
                    part=entry.path,
                    expected=f"at most {DEEPEST}",
                )
            levels.append(_listed(folder, entry.path))


def within(inner: str, outer: str) -> bool:
    """Return whether a path, which need not exist, is a folder or leads into it or below it.

    Folders are told apart by device and inode: one may have several paths (bind mounts).
    """
    folders = {_identity(outer)}
    folders |= {_identity(os.path.join(outer, entry.path)) for entry in tree(outer) if entry.folder}
    folders.discard(None)
    return any(_identity(path) in folders for path in _ancestors(os.path.realpath(inner)))


def content(path: str) -> Iterator[bytes]:
    """Yield the bytes of a regular file in blocks: as many as it says that it has.

    Raises:
        StorageError: it is no regular file, cannot be read, or has fewer bytes or more.
    """
    try:
        file = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        )
        with os.fdopen(file, "rb") as stream:
            status = os.fstat(stream.fileno())
            left = status.st_size
            while block := stream.read(min(_AT_ONCE, left)):
                left -= len(block)
                yield block
            if left or not stat.S_ISREG(status.st_mode) or stream.read(1):
                raise storage.refusal("cannot read", path, OSError(0, "another size than it says"))
    except OSError as error:
        raise storage.refusal("cannot read", path, error) from None


_AT_ONCE = 1 << 20


def _home(path: str) -> str:
    """The folder that a model's links may lead to: its own, or in the cache of huggingface_hub,
    ``models--owner--name/snapshots/<commit>``, the repository's."""
    snapshots, commit = os.path.split(path)
    repository, name = os.path.split(snapshots)
    cached = os.path.basename(repository).startswith("models--")
    return repository if name == "snapshots" and cached and _COMMIT.fullmatch(commit) else path


def _is_below(path: str, folder: str) -> bool:
    """Whether a real path is in a folder, by their names."""
    return path.startswith(os.path.join(folder, ""))


def _listed(folder: str, within: str) -> Iterator[Entry]:
    try:
        with os.scandir(os.path.join(folder, within)) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
            return iter(
                [
                    Entry(
                        os.path.join(within, entry.name),
                        entry.is_dir(follow_symlinks=False),
                        entry.is_symlink(),
                    )
                    for entry in found
                ]
            )
    except OSError as error:
        raise storage.refusal("cannot read", os.path.join(folder, within), error) from None


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _ancestors(path: str) -> Iterator[str]:
    """The path itself and all folders that it is in."""
    while True:
        yield path
        parent = os.path.dirname(path)
        if parent == path:
            return
        path = parent
