"""Fingerprints of a job's task, sources and outputs, which show what an earlier run has done."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence

from vbfmt._files import PathLike, storage
from vbfmt.converters.jobs.tasks import Task


def of_source(source: str) -> str:
    """Return a hash of the names, sizes and times of a source's files.

    Programs that copy or unpack files can set the modification time, and weights of the same shape
    have the same size. So the time of the last change, which only the system sets, is included.

    Args:
        source: a file or a folder. Files in subfolders are not included.

    Returns:
        32 hexadecimal digits, or "" if the source is a repository or cannot be read. A repository
        may have changed, so an item with such a source never counts as done.
    """
    return _of_files(source, ("st_mtime_ns", "st_ctime_ns"), deep=False)


def of_output(output: str) -> str:
    """Return a hash of the names, sizes and modification times of all files of an output.

    Args:
        output: a file or folder.

    Returns:
        32 hexadecimal digits, or "" if the output cannot be read.
    """
    return _of_files(output, ("st_mtime_ns",), deep=True)


def _of_files(path: str, times: Sequence[str], *, deep: bool) -> str:
    found = hashlib.sha256()
    try:
        for each in _files(path, deep=deep):
            status = os.stat(each)
            size = 0 if os.path.isdir(each) else status.st_size
            numbers = "\0".join(str(getattr(status, name)) for name in times)
            text = f"{os.path.basename(each)}\0{size}\0{numbers}\0"
            found.update(text.encode(errors="surrogatepass"))  # a name may not be valid UTF-8
    except OSError:
        return ""
    return found.hexdigest()[:32]


def _files(path: str, *, deep: bool) -> Iterator[str]:
    """Yield a path and, if it is a folder, the files in it and, if `deep`, its subfolders."""
    yield path
    if not os.path.isdir(path):
        return
    entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_file():
            yield entry.path
        elif deep and entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path, deep=True)


def digest_of(path: str) -> str | None:
    """Return the digest of a packed file from its header, or None if it is not a packed file."""
    from vbfmt._format.packed_file import PackedFile
    from vbfmt.errors import VbfmtError

    try:
        return PackedFile.parse(storage.read(path, mmap=True)).digest
    except VbfmtError:
        return None


def lacks_bank(path: str, banks: PathLike | None) -> bool:
    """Return whether the bank of a packed file is in a file of its own, which is missing.

    Args:
        path: the packed file.
        banks: the folder of that file; None for the packed file's folder.
    """
    from vbfmt._files import banks as bank_files
    from vbfmt._format.packed_file import PackedFile

    section = PackedFile.parse(storage.read(path, mmap=True)).bank
    folder = os.path.dirname(path) if banks is None else banks
    file = os.path.join(folder, bank_files.file_name(section.sha256.hex()))
    return section.external and not (
        os.path.isfile(file) and os.path.getsize(file) == section.length
    )


def of_task(task: Task) -> str:
    """Return a hash of a task: its operation, its options and the files of its base."""
    options = sorted(task.options.items())
    base = task.options.get("base")  # its content may change, too
    text = json.dumps([task.operation, options, base and of_source(str(base))], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
