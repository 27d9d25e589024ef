"""Damaged PyTorch files: archives with corrected lengths and directory, and files of the legacy
format."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zipfile
import zlib

import pytest

from tests.fuzz.content import LONGEST, Plain, change_numbers, scramble

_CODES = [bytes([code]) for code in b"NKJMX)]}(taesuqhrjcRbQ.G\x80\x85\x86\x87\x88\x89\x8a0210"]
_WORDS = (
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch._utils\n_rebuild_tensor\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch\nHalfStorage\n",
    b"ctorch\nLongStorage\n",
    b"ctorch.storage\nUntypedStorage\n",
    b"X\x01\x00\x00\x000",
    b"X\x01\x00\x00\x001",
    b"X\x02\x00\x00\x00\xc3\xa9",
    b"X\x03\x00\x00\x00\xed\xb3\xbf",  # a lone surrogate
    b"J\xff\xff\xff\x7f",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x86",
    b"K\x00",
    b"K\x02",
    b")R",
)

_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    struct.error,
)


def seeds() -> list[bytes]:
    """Return state dicts in both formats: several dtypes, shapes and strides, tied and sliced
    storages, parameters, and parts of a module's metadata."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    tied = torch.randn(2, 3)
    whole = torch.arange(12)
    states = [
        {"a": tied},
        {"a": tied, "b": tied.T, "c": tied[1:], "d": torch.nn.Parameter(tied)},
        {"i": whole, "s": whole[::2], "e": whole[:0], "o": whole[3], "h": whole.half()},
        torch.nn.Linear(2, 3).bfloat16().state_dict(),
        {"x": torch.zeros(2, 1, 3, dtype=torch.bool), "y": torch.ones(3, dtype=torch.uint8)},
    ]
    made = []
    for state in states:
        for archive in (True, False):
            file = io.BytesIO()
            torch.save(state, file, _use_new_zipfile_serialization=archive)
            made.append(file.getvalue())
    return made


def damaged(data: bytes, rng: random.Random, plain: Plain | None = None) -> bytes:
    """Return a file with one to four changes; one in five is changed without regard to the
    structure."""
    plain = plain or (lambda chunk: scramble(chunk, rng))
    if rng.random() < 0.2:
        return plain(data)[:LONGEST]
    changes = rng.choice((1, 1, 1, 2, 4))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = [[entry.filename, archive.read(entry)] for entry in archive.infolist()]
    except (*_UNREADABLE, OSError):
        for _ in range(changes):
            data = _program(data, rng)
        return data[:LONGEST]
    for _ in range(changes):
        _change(records, rng, plain)
    made = _archive(records, rng)
    return (plain(made) if rng.random() < 0.1 else made)[:LONGEST]


def _change(records: list[list[str | bytes]], rng: random.Random, plain: Plain) -> None:
    if not records:
        return
    record = rng.choice(records)
    name, content = record
    kind = rng.random()
    if str(name).endswith("data.pkl") or kind < 0.4:
        record = next((r for r in records if str(r[0]).endswith("data.pkl")), record)
        record[1] = _program(bytes(record[1]), rng)
    elif kind < 0.6:
        record[1] = change_numbers(bytes(content), rng)
    elif kind < 0.7:
        record[1] = bytes(content)[: rng.randrange(len(content) + 1)]
    elif kind < 0.8:
        record[1] = bytes(content) + rng.randbytes(rng.choice((1, 4, 24)))
    elif kind < 0.87:
        record[0] = rng.choice([str(r[0]) for r in records] + [f"{name}x", str(name).upper(), "x"])
    elif kind < 0.94:
        records.remove(record)
    else:
        record[1] = plain(bytes(content))


def _program(data: bytes, rng: random.Random) -> bytes:
    """Return a program with instructions inserted, removed, swapped or repeated at random
    positions."""
    at = rng.randrange(len(data) + 1)
    kind = rng.random()
    if kind < 0.3:
        return data[:at] + rng.choice(_WORDS) + data[at + rng.choice((0, 0, 1, 2, 5)) :]
    if kind < 0.5:
        return data[:at] + rng.choice(_CODES) + data[at + rng.choice((0, 1)) :]
    if kind < 0.65:
        length = rng.choice((1, 2, 3, 10, 60))
        other = rng.randrange(len(data) + 1)
        return data[:at] + data[other : other + length] + data[at:]
    if kind < 0.75:
        return data[:at] + data[at + rng.choice((1, 2, 3, 10)) :]
    changed = bytearray(data)
    if changed:
        place = at % len(changed)
        changed[place] = rng.choice((0, 1, 2, 3, 6, 255, changed[place] ^ (1 << rng.randrange(8))))
        if rng.random() < 0.2:
            changed[place : place + 8] = struct.pack("<q", rng.choice((0, 1, -1, 12, 1 << 40)))
    return bytes(changed)


def _archive(records: list[list[str | bytes]], rng: random.Random) -> bytes:
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as archive:
        warnings.simplefilter("ignore")  # about repeated names
        for name, content in records:
            entry = zipfile.ZipInfo(str(name).rstrip("\0") or "x")
            entry.compress_type = method
            archive.writestr(entry, bytes(content))
    return file.getvalue()
