"""Folders, encoded as one input: files and links by name."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

LINK = ".link"
"""Ending of links in an input; their content is the target."""

_MOST_FILES = 24

Files = dict[str, bytes]


def joined(files: Mapping[str, bytes]) -> bytes:
    """Return all files as one input: for each the lengths of its name and content, the name and the
    content."""
    return b"".join(
        struct.pack("<BI", len(os.fsencode(name)), len(content)) + os.fsencode(name) + content
        for name, content in files.items()
    )


def split(data: bytes) -> Files:
    """Return the files of an input, without data beyond the end and without invalid names."""
    files: Files = {}
    at = 0
    while at + 5 <= len(data) and len(files) < _MOST_FILES:
        name_length, length = struct.unpack_from("<BI", data, at)
        at += 5
        name = os.fsdecode(data[at : at + name_length])
        at += name_length
        if _is_below(name):
            files[name] = data[at : at + length]
        at += length
    return files


@contextlib.contextmanager
def written(files: Mapping[str, bytes]) -> Iterator[Path]:
    """Yield a new folder with these files, and remove it afterwards."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    folder = tempfile.mkdtemp(prefix="vbfmt-fuzz-", dir=memory)
    try:
        for name, content in files.items():
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError, ValueError):  # a file and a folder with one name
                os.makedirs(os.path.dirname(path), exist_ok=True)
                if name.endswith(LINK):
                    os.symlink(content, path.removesuffix(LINK))
                else:
                    with open(path, "xb") as file:
                        file.write(content)
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def beside(path: os.PathLike[str]) -> Iterator[None]:
    """Yield the path of a folder that the block may create, and remove it afterwards."""
    try:
        yield
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _is_below(name: str) -> bool:
    """Return whether a path can name a file in the folder or in one below it."""
    parts = name.split("/")
    return "\0" not in name and all(part not in ("", ".", "..") for part in parts)
