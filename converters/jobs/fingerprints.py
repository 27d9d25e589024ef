"""Fingerprints, by which a job recognises what it has done: of its task, sources and outputs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence

from vbfmt._files import storage
from vbfmt.converters.jobs.tasks import Task


def of_source(source: str, times: Sequence[str] = ("st_mtime_ns", "st_ctime_ns")) -> str:
    """Return a hash of the names, sizes and times of a source's files.

    Args:
        source: a file or folder.
        times: attributes of `os.stat_result` to include. Programs that copy or unpack files can set
            the modification time (``st_mtime_ns``), and weights of the same shape have the same
            size. Only the system sets the time of the last change (``st_ctime_ns``).

    Returns:
        32 hexadecimal digits, or "" if the source is a repository or cannot be read. A repository
        may have changed, so an item with such a source never counts as done.
    """
    try:
        return _of_files(source, times)
    except OSError:
        return ""


def _of_files(source: str, times: Sequence[str]) -> str:
    found = hashlib.sha256()
    paths = [source]
    if os.path.isdir(source):
        paths += sorted(entry.path for entry in os.scandir(source) if entry.is_file())
    for path in paths:
        status = os.stat(path)
        size = 0 if os.path.isdir(path) else status.st_size
        numbers = "\0".join(str(getattr(status, name)) for name in times)
        text = f"{os.path.basename(path)}\0{size}\0{numbers}\0"
        found.update(text.encode(errors="surrogatepass"))  # a name may not be valid UTF-8
    return found.hexdigest()[:32]


def digest_of(path: str) -> str | None:
    """Return the digest of a packed file from its header, or None if it is not a packed file."""
    from vbfmt._format.packed_file import PackedFile
    from vbfmt.errors import VbfmtError

    try:
        return PackedFile.parse(storage.read(path, mmap=True)).digest
    except VbfmtError:
        return None


def of_task(task: Task) -> str:
    """Return a hash of a task: its operation, its options and the files of its base."""
    options = sorted(task.options.items())
    base = task.options.get("base")  # its content may change, too
    text = json.dumps([task.operation, options, base and of_source(str(base))], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
