"""The backend for a store in a folder. Writes are durable."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator

from vbfmt._files import staging, storage
from vbfmt._format.container import Bytes
from vbfmt.errors import MissingFileError, OutputExistsError
from vbfmt.store import layout, record
from vbfmt.store.backend import Found, Stored, has_content

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = "lock"
"""The file that a process locks while it changes a small object."""


_PAUSE = 0.01
"""Seconds between two attempts to lock, on systems without blocking locks."""

_TICK = 2_000_000_000
"""Nanoseconds. No file system's modification times are coarser."""


_logger = logging.getLogger(__name__)


class Folder:
    """Objects as files. Keys are their paths within the folder."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._made: set[str] = set()

    @property
    def where(self) -> str:
        """See `Backend.where`."""
        return self._path

    def address(self, key: str) -> str:
        """See `Backend.address`: the file's path."""
        return os.path.join(self._path, *key.split("/"))

    def file(self, key: str) -> str:
        """See `Backend.file`."""
        path = self.address(key)
        if not os.path.exists(path):
            raise FileNotFoundError(path)
        return path

    def content(self, key: str) -> Bytes | None:
        """See `Backend.content`. The content is memory-mapped."""
        path = self.address(key)
        return storage.read(path, mmap=True) if os.path.lexists(path) else None

    def exists(self, key: str) -> bool:
        """See `Backend.exists`."""
        return os.path.lexists(self.address(key))

    def create(self, key: str, pieces: Iterable[Bytes]) -> bool:
        """See `Backend.create`."""
        path = self.address(key)
        self._make_folder(os.path.dirname(path))
        try:
            storage.write(path, pieces, overwrite=False, sweeps=False)  # `tidy` does that
        except OutputExistsError:
            return False
        return True

    def found(self, key: str) -> Found | None:
        """See `Backend.found`; the version is a hash of the content.

        If a file is too long for a record, only its beginning is read.
        """
        path = self.address(key)
        try:
            content = bytes(storage.read(path, mmap=False, most=record.LONGEST + 1))
        except MissingFileError:
            return None
        return Found(content, _version(content))

    def replace(self, key: str, content: bytes, version: str) -> bool:
        """See `Backend.replace`."""
        with self._locked():
            found = self.found(key)
            if found is None or found.version != version:
                return False
            storage.write(self.address(key), [content], overwrite=True, sweeps=False)
            return True

    def remove(self, key: str, version: str) -> bool:
        """See `Backend.remove`."""
        with self._locked():
            found = self.found(key)
            if found is None or found.version != version:
                return False
            self.delete(key)
            return True

    def discard(self, key: str, mark: str, content: bytes) -> bool:
        """See `Backend.discard`. No other process can change the mark meanwhile."""
        with self._locked():
            if not has_content(self, mark, content):
                return False
            self.delete(key)
            self.delete(mark)
            return True

    def delete(self, key: str) -> None:
        """See `Backend.delete`."""
        path = self.address(key)
        with storage.refusing("cannot remove", path), contextlib.suppress(FileNotFoundError):
            os.unlink(path)
            storage.sync_folder(os.path.dirname(path))

    def entries(self, prefix: str) -> Iterator[Stored]:
        """See `Backend.entries`; temporary files are left out."""
        stack = [(prefix, self.address(prefix))]
        while stack:
            above, folder = stack.pop()
            try:
                found = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise storage.refusal("cannot read", folder, error) from None
            for entry in found:
                key = f"{above}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    stack.append((key, entry.path))
                elif not entry.name.startswith("."):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        version = f"{status.st_mtime_ns}-{status.st_ino}"
                        yield Stored(key, status.st_size, status.st_mtime, version)

    def stamps(self, prefix: str) -> dict[str, str | None]:
        """See `Backend.stamps`.

        The stamp is the modification time of a subfolder. It is None if that time is very recent,
        because the next change might get the same time.
        """
        found: dict[str, str | None] = {}
        now = time.time_ns()
        for shard in layout.SHARDS:
            key = f"{prefix}/{shard}"
            try:
                changed = os.stat(self.address(key)).st_mtime_ns
            except OSError:
                found[key] = "none"
            else:
                found[key] = str(changed) if now - changed > _TICK else None
        return found

    def tidy(self) -> None:
        """See `Backend.tidy`."""
        for prefix in layout.PREFIXES:
            for folder, _, files in os.walk(self.address(prefix)):
                for name in files:
                    if name.startswith(".") and (target := staging.target_of(name)):
                        staging.sweep(os.path.join(folder, target))

    def _make_folder(self, path: str) -> None:
        """Create a folder in the store, durably. Do nothing if it was created before."""
        if path in self._made:
            return
        above = os.path.dirname(path)
        with storage.refusing("cannot write", path):
            if not os.path.isdir(path):
                os.makedirs(path, exist_ok=True)
                storage.sync_folder(above)
                storage.sync_folder(os.path.dirname(above))
        self._made.add(path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the store's lock in the block. If the process is killed, the system releases the
        lock."""
        path = os.path.join(self._path, LOCK)
        with storage.refusing("cannot write", path):
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with storage.refusing("cannot lock", path):
                _wait_for_lock(file)
            yield
        finally:
            os.close(file)


def _wait_for_lock(file: int) -> None:
    if sys.platform == "win32":
        while True:
            try:
                msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # the first byte, which need not exist
                return
            except OSError as error:
                if error.errno != errno.EACCES:  # EACCES: another process holds the lock
                    raise
                time.sleep(_PAUSE)
    else:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _logger.info("waiting for another process that is changing the store")
            fcntl.flock(file, fcntl.LOCK_EX)


def _version(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
