"""Reading ahead the pages of mapped files, many in one call."""

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
    """Return the bytes of a mapping that are resident in memory."""
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
def test_pages_are_resident_after_fetch(path, start, stop):
    values = mapped(path)
    assert resident(values) == 0
    part = values[start:stop]
    pages.fetch(part[: len(part) // 2 * 2].view("<u2").reshape(1, -1), "w")
    assert resident(values) >= len(part)


@pytest.mark.skipif(not linux_since(5, 14), reason="Linux 5.14")
def test_a_truncated_file_is_an_error_and_does_not_end_the_process(path):
    values = mapped(path)
    os.truncate(path, SIZE // 2)
    pages.fetch(values[: SIZE // 2], "w")
    with pytest.raises(errors.StorageError, match=r"truncated while it was read.*: w"):
        pages.fetch(values, "w")


def test_arrays_that_are_not_mapped_or_not_contiguous_are_ignored(path):
    values = mapped(path)
    pages.fetch(np.zeros(10), "w")
    pages.fetch(values[:0], "w")
    pages.fetch(values.reshape(64, -1)[:, :3], "w")
    if sys.platform == "linux":
        assert resident(values) == 0


class Refusing(mmap.mmap):
    """A mapping on a system without this `madvise` option."""

    def madvise(self, *_):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux")
def test_pages_are_read_on_use_if_the_system_has_no_such_option():
    values = np.frombuffer(Refusing(-1, 8192), np.uint8)
    pages.fetch(values, "x")
    assert not values.any()
