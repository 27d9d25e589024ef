"""The metadata of a GGUF base, which may be damaged or hostile."""

from __future__ import annotations

import struct
import time
import tracemalloc

import pytest

pytest.importorskip("gguf")

from tests.converters.gguf.bases import base
from vbfmt import errors
from vbfmt.converters import gguf
from vbfmt.converters.gguf import metadata


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 16, b"x" * 99])
def test_a_damaged_base_is_one_error(tmp_path, adapter, content):
    (tmp_path / "base.gguf").write_bytes(content)
    with pytest.raises(errors.SourceError, match="not a readable GGUF file"):
        gguf.write(adapter, tmp_path / "x.gguf", base=tmp_path / "base.gguf")


def gguf_bytes(*entries: bytes, tensors: int = 0, count: int | None = None) -> bytes:
    """Return a GGUF file with these metadata entries, each under a name of one letter."""
    begin = struct.pack("<4sIQQ", b"GGUF", 3, tensors, len(entries) if count is None else count)
    return begin + b"".join(struct.pack("<Q", 1) + b"x" + entry for entry in entries)


HOSTILE_GGUF = {
    "array of 2^40 bytes": gguf_bytes(struct.pack("<IIQ", 9, 0, 2**40) + bytes(64)),
    "array whose size wraps": gguf_bytes(struct.pack("<IIQ", 9, 10, 2**61) + bytes(64)),
    "array of 2^40 strings": gguf_bytes(struct.pack("<IIQ", 9, 8, 2**40) + bytes(64)),
    "array of 2^40 arrays": gguf_bytes(struct.pack("<IIQ", 9, 9, 2**40) + bytes(64)),
    "arrays without end": gguf_bytes(struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 1000),
    "string of 2^63 bytes": gguf_bytes(struct.pack("<IQ", 8, 2**63)),
    "2^50 entries": gguf_bytes(count=2**50) + bytes(64),
    "2^50 tensors": gguf_bytes(tensors=2**50) + bytes(64),
    "10^6 dimensions": gguf_bytes(tensors=1) + struct.pack("<QIQ", 0, 10**6, 0) + bytes(64),
    "unknown type": gguf_bytes(struct.pack("<I", 99)),
}


@pytest.mark.parametrize("what", HOSTILE_GGUF)
@pytest.mark.timeout(20)
def test_false_counts_of_a_hostile_base_are_refused(tmp_path, adapter, what):
    """The gguf package reads an array of any length that the file claims."""
    (tmp_path / "base.gguf").write_bytes(HOSTILE_GGUF[what])
    with pytest.raises(errors.SourceError, match="not a readable GGUF file"):
        gguf.write(adapter, tmp_path / "x.gguf", base=tmp_path / "base.gguf")


def test_arrays_with_valid_counts_are_skipped(tmp_path):
    words = b"".join(struct.pack("<Q", len(word)) + word for word in (b"", b"a", b"bc"))
    nested = struct.pack("<IQ", 4, 2) + bytes(8)
    (tmp_path / "x.gguf").write_bytes(
        gguf_bytes(
            struct.pack("<IIQ", 9, 8, 3) + words,
            struct.pack("<IIQ", 9, 9, 2) + nested * 2,
            struct.pack("<I", 7) + b"\1",
            struct.pack("<IQ", 8, 2) + b"ok",
            tensors=1,
        )
        + struct.pack("<Q1sIQQIQ", 1, b"t", 2, 3, 4, 0, 0)
    )
    found = metadata.read(tmp_path / "x.gguf", ("nothing",))
    assert found == metadata.Metadata({}, {"t": (4, 3)})


@pytest.mark.parametrize(
    "content",
    [
        gguf_bytes(
            struct.pack("<I", 7) + b"\1",
            struct.pack("<IIQ", 9, 8, 100_000) + struct.pack("<Q", 0) * 100_000,
        ),
        gguf_bytes(struct.pack("<IIQ", 9, 9, 60_000) + struct.pack("<IQ", 0, 0) * 60_000),
        gguf_bytes(*[struct.pack("<IB", 7, 1)] * 60_000),
        gguf_bytes(tensors=30_000)
        + b"".join(struct.pack("<Q5sIIQ", 5, b"%05d" % n, 0, 0, 0) for n in range(30_000)),
    ],
    ids=["strings", "arrays", "entries", "tensors"],
)
def test_a_small_file_takes_little_memory_and_time(tmp_path, content):
    """Earlier, the gguf package read the file, and took 715 bytes for each entry."""
    (tmp_path / "x.gguf").write_bytes(content)
    tracemalloc.start()
    begin = time.process_time()
    try:
        metadata.read(tmp_path / "x.gguf", ("nothing",))
        taken, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * len(content) + (1 << 20)
    assert taken < 5


@pytest.mark.parametrize("kind", ["gguf", "config"])
def test_more_layers_than_any_model_has_are_refused(tmp_path, adapter, kind):
    """Earlier, a file of 160 bytes took 3.2 GB."""
    if kind == "config":
        file = base(tmp_path, num_hidden_layers=65536)
    else:
        file = tmp_path / "base.gguf"
        fields = {"general.architecture": b"llama", "llama.block_count": 65536}
        fields["llama.attention.head_count"] = 4
        file.write_bytes(
            struct.pack("<4sIQQ", b"GGUF", 3, 0, 3)
            + b"".join(
                struct.pack("<Q", len(key))
                + key.encode()
                + (
                    struct.pack("<IQ", 8, len(value)) + value
                    if isinstance(value, bytes)
                    else struct.pack("<II", 4, value)
                )
                for key, value in fields.items()
            )
        )
    with pytest.raises(errors.SourceError, match="has an unusable value.*65536.*1 to 1024"):
        gguf.write(adapter, tmp_path / "x.gguf", base=file)


@pytest.mark.parametrize("what", ["a key", "a tensor"])
def test_repeated_entries_are_refused(tmp_path, what):
    entry = struct.pack("<II", 4, 1)
    tensor = struct.pack("<Q1sIIQ", 1, b"t", 0, 0, 0)
    content = gguf_bytes(entry, entry) if what == "a key" else gguf_bytes(tensors=2) + tensor * 2
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(errors.SourceError, match="not a readable GGUF file"):
        metadata.read(tmp_path / "x.gguf", ("x",))
