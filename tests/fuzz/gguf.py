"""Damaged GGUF files of base models: changed fields, counts and tensors."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from tests.fuzz import folders
from tests.fuzz.content import LONGEST, Plain, scramble
from tests.fuzz.refusals import kind_of
from vbfmt import errors

_NUMBERS = (0, 1, 2, 3, 7, 8, 9, 16, 1024, 1025, 65536, 2**31, 2**32 - 1, 2**32, 2**62, 2**64 - 1)
_FIELDS: tuple[tuple[str, int, bytes], ...] = (
    ("general.architecture", 8, struct.pack("<Q", 5) + b"llama"),
    ("llama.block_count", 4, struct.pack("<I", 2)),
    ("llama.attention.head_count", 4, struct.pack("<I", 4)),
    ("llama.attention.head_count_kv", 9, struct.pack("<IQII", 4, 2, 2, 2)),
    ("llama.rope.freq_base", 6, struct.pack("<f", 1e4)),
    ("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 3) + struct.pack("<Q1s", 1, b"a") * 3),
    ("nested", 9, struct.pack("<IQ", 9, 2) + struct.pack("<IQB", 7, 1, 1) * 2),
)
_TENSORS = (
    *((f"blk.{layer}.attn_q.weight", (32, 32)) for layer in range(2)),
    *((f"blk.{layer}.attn_k.weight", (32, 16)) for layer in range(2)),
    ("token_embd.weight", (32, 64)),
    ("output.weight", (32, 64)),
)


def seeds() -> list[bytes]:
    """Return three bases: with all fields, with the fewest fields, and of another architecture."""
    pytest.importorskip("gguf")
    few = _FIELDS[:3]
    other = [(name.replace("llama", "gpt2"), kind, value) for name, kind, value in _FIELDS[1:4]]
    gpt2 = [("general.architecture", 8, struct.pack("<Q", 4) + b"gpt2"), *other]
    return [_file(_FIELDS, _TENSORS), _file(few, _TENSORS[:3]), _file(gpt2, _TENSORS[-2:])]


def damaged(data: bytes, rng: random.Random, plain: Plain | None = None) -> bytes:
    """Return a GGUF file with one to four numbers, texts or byte ranges changed. Lengths are
    usually correct."""
    plain = plain or (lambda chunk: scramble(chunk, rng))
    kind = rng.random()
    if kind < 0.3:
        return plain(data)[:LONGEST]
    if kind < 0.6:
        return _with_numbers(data, rng)[:LONGEST]
    fields = [list(field) for field in _FIELDS]
    tensors = [list(tensor) for tensor in _TENSORS]
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change(fields, tensors, rng, plain)
    return _file(fields, tensors, rng if rng.random() < 0.1 else None)[:LONGEST]


def run(data: bytes) -> str:
    """Read a GGUF base. An accepted file must have allowed numbers of layers, heads and dimensions,
    and the adapter written for it must be complete."""
    from tests.converters.gguf.random_adapter import adapter_of
    from vbfmt import Module
    from vbfmt.converters import gguf
    from vbfmt.converters.gguf import base

    with folders.written({"base.gguf": data}) as folder:
        try:
            found = base.read_base(folder / "base.gguf")
        except errors.VbfmtError as error:
            return kind_of(error)
        assert 1 <= found.layers <= base.MOST_LAYERS
        assert found.heads >= 1
        assert all(0 <= size < 1 << 64 for shape in found.shapes.values() for size in shape)
        adapter = adapter_of([Module("model.layers.1.self_attn.q_proj", 32, 32, 2)], b=8)
        try:
            gguf.write(adapter, folder / "x.gguf", base=folder / "base.gguf")
        except errors.VbfmtError as error:
            assert not (folder / "x.gguf").exists()
            return f"accepted, then {kind_of(error)}"
        assert found.shapes["blk.1.attn_q.weight"] == (32, 32)
        return "accepted"


def _change(fields: list[Any], tensors: list[Any], rng: random.Random, plain: Plain) -> None:
    kind = rng.random()
    rows = fields if kind < 0.6 else tensors
    if not rows:
        return
    row = rng.choice(rows)
    if kind < 0.1 or kind > 0.9:
        rows.remove(row)
    elif kind < 0.2 or kind > 0.8:
        rows.insert(rng.randrange(len(rows) + 1), list(row))
    elif kind < 0.3 or kind > 0.75:
        row[0] = rng.choice((rng.choice(rows)[0], f"{row[0]}x", "z" * 1025, "ä"))
    elif rows is tensors:
        shape = list(row[1]) or [1]
        shape[rng.randrange(len(shape))] = rng.choice(_NUMBERS)
        row[1] = tuple(shape * rng.choice((1, 1, 1, 2, 3)))
    elif kind < 0.4:
        row[1] = rng.choice((*range(14), 255, 2**32 - 1))
    elif kind < 0.5:
        row[2] = _with_numbers(row[2], rng)
    else:
        row[2] = plain(row[2])


def _with_numbers(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    at = rng.randrange(len(changed) + 1)
    width = rng.choice((1, 4, 8))
    number = rng.choice(_NUMBERS) % (1 << 8 * width)
    changed[at : at + width] = number.to_bytes(width, "little")
    return bytes(changed)


def _file(fields: Any, tensors: Any, lie: random.Random | None = None) -> bytes:
    """Return the file. With `lie`, its counts are false."""
    counts = [len(tensors), len(fields)]
    if lie:
        counts[lie.randrange(2)] = lie.choice(_NUMBERS)
    body = struct.pack("<4sIQQ", b"GGUF", 3, *counts)
    for name, kind, value in fields:
        body += struct.pack("<Q", len(name.encode())) + name.encode() + struct.pack("<I", kind)
        body += value
    for name, shape in tensors:
        body += struct.pack("<Q", len(name.encode())) + name.encode()
        body += struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, 0)
    return body
