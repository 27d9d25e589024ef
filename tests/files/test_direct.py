"""Files that are written without the page cache (direct I/O) have the same bytes."""

from __future__ import annotations

import errno
import os
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbfmt import errors
from vbfmt._files import direct, storage

BLOCK = 1 << 22


def pieces_of(lengths):
    random = np.random.default_rng(0)
    return [random.integers(0, 256, length, np.uint8).tobytes() for length in lengths]


@pytest.mark.parametrize(
    "lengths",
    [
        [],
        [0],
        [1],
        [4096],
        [BLOCK - 1, 1],
        [BLOCK],
        [BLOCK, 1],
        [3, BLOCK, 4096, 2 * BLOCK + 17],
        [BLOCK // 2] * 7,
    ],
)
def test_blocks_of_any_length_are_written(tmp_path, lengths):
    pieces = pieces_of(lengths)
    storage.write(tmp_path / "file", pieces, overwrite=False, past_cache=True)
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)


@given(lengths=st.lists(st.integers(0, 300), max_size=20))
def test_small_blocks_are_written(tmp_path_factory, lengths):
    path = tmp_path_factory.mktemp("direct") / "file"
    pieces = pieces_of(lengths)
    storage.write(path, pieces, overwrite=False, past_cache=True)
    assert path.read_bytes() == b"".join(pieces)


@pytest.mark.parametrize("sizes", [[8192] * 20, [8192, 100, 4096] * 7])
def test_buffers_are_reused_only_after_a_slow_disk_has_written_them(tmp_path, monkeypatch, sizes):
    real = os.write

    def slow(file, data):
        time.sleep(0.005)
        return real(file, data)

    def blocks(turns):
        random = np.random.default_rng(1)
        for number, size in enumerate(sizes):
            block = turns[number % len(turns)][:size]
            block[:] = random.integers(0, 256, size, np.uint8)
            yield block.data

    monkeypatch.setattr(direct.os, "write", slow)
    turns = [direct.aligned(8192) for _ in range(2)]
    storage.write(tmp_path / "file", blocks(turns), overwrite=False, past_cache=True)
    expected = b"".join(map(bytes, blocks(turns)))
    assert (tmp_path / "file").read_bytes() == expected


def test_the_page_cache_is_used_if_direct_writes_are_refused(tmp_path, monkeypatch):
    real, refused = os.write, []

    def write(file, data):
        import fcntl

        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(len(data))
            raise OSError(errno.EINVAL, "not here")
        return real(file, data)

    pytest.importorskip("fcntl")
    monkeypatch.setattr(direct.os, "write", write)
    pieces = pieces_of([8192, BLOCK, 5])
    storage.write(tmp_path / "file", pieces, overwrite=False, past_cache=True)
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)
    assert len(refused) <= 1


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(direct.os, "write", lambda file, data: real(file, data[:5000]))
    pieces = pieces_of([30_000, 7])
    storage.write(tmp_path / "file", pieces, overwrite=False, past_cache=True)
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def write(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(direct.os, "write", write)
    with pytest.raises(errors.StorageError, match="no space left"):
        storage.write(tmp_path / "file", pieces_of([9]), overwrite=False, past_cache=True)
    assert os.listdir(tmp_path) == []


def test_a_source_that_fails_leaves_nothing(tmp_path):
    def pieces():
        yield bytes(3 * BLOCK)
        raise errors.TargetError("no more")

    with pytest.raises(errors.TargetError):
        storage.write(tmp_path / "file", pieces(), overwrite=False, past_cache=True)
    assert os.listdir(tmp_path) == []


def test_other_systems_use_the_page_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(direct.sys, "platform", "darwin")
    monkeypatch.setattr("fcntl.F_FULLFSYNC", 51, raising=False)  # refused here
    pieces = pieces_of([BLOCK, 5])
    storage.write(tmp_path / "file", pieces, overwrite=False, past_cache=True)
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)


def test_the_page_cache_is_used_if_a_file_cannot_be_switched(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    real = fcntl.fcntl

    def refuse(file, command, *rest):
        if command == fcntl.F_SETFL:
            raise OSError(errno.EINVAL, "not here")
        return real(file, command, *rest)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    pieces = pieces_of([BLOCK, 5])
    storage.write(tmp_path / "file", pieces, overwrite=False, past_cache=True)
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)
