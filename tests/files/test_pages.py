"""Pages of mapped files, asked for many at once."""

from __future__ import annotations

import errno
import mmap
import os
import platform
import sys

import numpy as np
import pytest

from vbfmt import errors
from vbfmt._files import pages, storage

SIZE = 64 * mmap.PAGESIZE


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    return path


def linux_since(*version):
    found = tuple(map(int, platform.release().split("-")[0].split(".")[:2]))
    return sys.platform == "linux" and found >= version


def mapped(path):
    return np.frombuffer(storage.read(path, mmap=True), np.uint8)


def resident(values):
    """Bytes of a mapping that this process has in its page tables."""
    address = values.__array_interface__["data"][0]
    inside = False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            first = line.split()[0]
            if "-" in first and not first.endswith(":"):
                low, high = (int(part, 16) for part in first.split("-"))
                inside = low <= address < high
            elif inside and first == "Rss:":
                return int(line.split()[1]) * 1024
    raise AssertionError("no such mapping")


@pytest.mark.skipif(not linux_since(5, 14), reason="Linux 5.14")
@pytest.mark.parametrize(("start", "stop"), [(0, SIZE), (5, SIZE), (3 * mmap.PAGESIZE + 1, None)])
def test_pages_are_there_before_they_are_read(path, start, stop):
    values = mapped(path)
    assert resident(values) == 0
    part = values[start:stop]
    pages.fetch(part[: len(part) // 2 * 2].view("<u2").reshape(1, -1), "w")
    assert resident(values) >= len(part)


@pytest.mark.skipif(not linux_since(5, 14), reason="Linux 5.14")
def test_a_file_that_was_truncated_is_an_error_and_not_the_end(path):
    values = mapped(path)
    os.truncate(path, SIZE // 2)
    pages.fetch(values[: SIZE // 2], "w")
    with pytest.raises(errors.StorageError, match=r"truncated while it was read.*: w"):
        pages.fetch(values, "w")


def test_what_is_in_no_file_or_not_in_one_piece_is_left_alone(path):
    values = mapped(path)
    pages.fetch(np.zeros(10), "w")
    pages.fetch(values[:0], "w")
    pages.fetch(values.reshape(64, -1)[:, :3], "w")
    if sys.platform == "linux":
        assert resident(values) == 0


class Refusing(mmap.mmap):
    """A map of a system that does not have the call."""

    def madvise(self, *_):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux")
def test_a_system_without_the_call_reads_the_pages_when_they_are_used():
    values = np.frombuffer(Refusing(-1, 8192), np.uint8)
    pages.fetch(values, "x")
    assert not values.any()
