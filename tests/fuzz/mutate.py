"""Structure-aware damage: packed files and PEFT checkpoints with a few things changed and every
length and checksum made right again, so that what comes after the first checks is reached."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack

from tests import forge
from vbfmt.tensors import BITS

Bytes = Callable[[bytes], bytes]

CORPUS = Path(__file__).parents[2] / "spec" / "corpus"
LONGEST = 1 << 16

_INTEGERS = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    15,
    16,
    32,
    63,
    64,
    65,
    127,
    128,
    255,
    256,
    257,
    1024,
    65535,
    65536,
)
_INTEGERS += (65537, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = (
    "",
    "a",
    "layer",
    "z" * 1025,
    "ä",
    "\0",
    "\x7f",
    "\u0085",
    "\ufeff",
    "\uffff",
    "\U00010000",
)
_TEXTS += ("{}", '{"a":1}', '{"a":NaN}', "[" * 70 + "]" * 70, '{"a":1,"a":2}', *sorted(BITS))
_OTHERS = (None, True, False, -1, 1.5, b"", bytes(32), [], {}, [[]], {"a": "b"}, [0] * 20)
_WORDS = tuple(
    struct.pack("<f", x)
    for x in (0.0, -0.0, 1.0, 0.5, 0.25, -1.0, 1e-45, 3.4e38, math.nan, math.inf, -math.inf, 1 / 3)
)


def seeds() -> list[bytes]:
    """The small files of the corpus, valid and invalid."""
    files = sorted(CORPUS.glob("*/*.vblora"))
    return [data for file in files if len(data := file.read_bytes()) <= LONGEST]


def mutants(seed: int, count: int) -> Iterator[bytes]:
    """`count` packed files with damage; the same ones for the same seed."""
    rng = random.Random(seed)
    pool = seeds()
    for _ in range(count):
        yield packed(rng.choice(pool), rng)


def packed(data: bytes, rng: random.Random, plain: Bytes | None = None) -> bytes:
    """A packed file with one to four things changed.

    Args:
        plain: changes bytes without knowing what they mean (a fuzzer's own mutation).
    """
    plain = plain or (lambda chunk: scramble(chunk, rng))
    try:
        fields, header, rest = forge.parts(data)
        sections = _sections(header, rest)
    except (ValueError, struct.error, TypeError, KeyError, IndexError):
        return plain(data)[:LONGEST]
    fields = list(fields)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        kind = rng.random()
        if kind < 0.05:
            fields[rng.choice((1, 2, 5))] = rng.choice((0, 1, 2, 255, 65535))
        elif kind < 0.5 or not sections:
            _change_tree(header, rng)
        else:
            at = rng.randrange(len(sections))
            sections[at] = (
                _change_numbers(sections[at], rng) if kind < 0.85 else plain(sections[at])
            )
    if rng.random() < 0.7:
        sections = _fitted(header, sections, rng)
    body = b""
    entries = []
    for content in sections:
        body += bytes(-len(body) % 64)
        entries.append([len(body), len(content), hashlib.sha256(content).digest()])
        body += content
    if isinstance(header, dict) and rng.random() < 0.9:
        header["sections"] = entries
    try:
        encoded = msgpack.packb(header, use_bin_type=True)
    except (ValueError, OverflowError, TypeError):
        return plain(data)[:LONGEST]
    if rng.random() < 0.15:
        encoded = plain(encoded)
    return forge.join(tuple(fields), encoded, body)[:LONGEST]


def repaired(data: bytes) -> bytes:
    """The file with its lengths and its CRC as they must be, if it has a front at all."""
    if len(data) < 32 or forge.PREAMBLE.unpack_from(data)[3] > len(data) - 32:
        return data
    return forge.with_preamble(data, file_length=len(data))


def scramble(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, removed, put in or doubled."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at : at + rng.choice((1, 4, 64))]
            case 2:
                changed[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8)))
            case _:
                changed[at:at] = changed[at : at + rng.choice((1, 8, 100))]
    return bytes(changed)


def checkpoint(data: bytes, rng: random.Random, plain: Bytes | None = None) -> bytes:
    """A PEFT checkpoint (see `joined`) with one to four things changed."""
    plain = plain or (lambda chunk: scramble(chunk, rng))
    try:
        config_text, weights = split(data)
        (length,) = struct.unpack_from("<Q", weights)
        header = json.loads(weights[8 : 8 + length])
        contents = {
            name: weights[8 + length :][slice(*entry["data_offsets"])]
            for name, entry in header.items()
            if name != "__metadata__"
        }
        config = json.loads(config_text) if config_text else {}
    except (ValueError, struct.error, TypeError, KeyError, AttributeError, RecursionError):
        return plain(data)[:LONGEST]
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        kind = rng.random()
        if kind < 0.25:
            _change_tree(config, rng)
        elif kind < 0.6:
            _change_tree(header, rng)
        elif kind < 0.7 and contents:
            _rename(header, contents, rng)
        elif contents:
            name = rng.choice(sorted(contents))
            contents[name] = _change_numbers(contents[name], rng)
    body = _placed(header, contents, rng) if isinstance(header, dict) else b""
    text = json.dumps(header, default=repr).encode()
    if rng.random() < 0.1:
        text = plain(text)
    if rng.random() < 0.1:
        config_text = plain(config_text)
    else:
        config_text = json.dumps(config, default=repr).encode() if config_text else b""
    return joined(config_text, struct.pack("<Q", len(text)) + text + body)[:LONGEST]


def joined(config: bytes, weights: bytes) -> bytes:
    """Both files of a checkpoint as one input: length of the config, config, weights."""
    return struct.pack("<I", len(config)) + config + weights


def split(data: bytes) -> tuple[bytes, bytes]:
    """The two files again; a length beyond the end means all of it."""
    (length,) = struct.unpack_from("<I", data.ljust(4, b"\0"))
    return data[4 : 4 + length], data[4 + length :]


def _sections(header: dict[str, Any], rest: bytes) -> list[bytes]:
    return [rest[offset : offset + length] for offset, length, _ in header["sections"]]


def _change_tree(tree: Any, rng: random.Random) -> None:
    """One value somewhere in a tree of maps and arrays replaced, removed, doubled or moved."""
    holders = [tree, *_holders(tree)]
    target = rng.choice([holder for holder in holders if holder] or holders)
    if isinstance(target, dict):
        if not target or rng.random() < 0.1:
            target[rng.choice(_TEXTS)] = _value(rng)
            return
        key = rng.choice(list(target))
        if rng.random() < 0.15:
            del target[key]
        else:
            target[key] = _near(target[key], rng)
    elif isinstance(target, list):
        if not target or rng.random() < 0.1:
            target.insert(rng.randrange(len(target) + 1), _value(rng))
            return
        at = rng.randrange(len(target))
        match rng.randrange(5):
            case 0:
                del target[at]
            case 1:
                target.insert(at, json.loads(json.dumps(target[at], default=repr)))
            case 2:
                rng.shuffle(target)
            case _:
                target[at] = _near(target[at], rng)


def _holders(tree: Any) -> Iterator[Any]:
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    for value in inner:
        if isinstance(value, dict | list):
            yield value
            yield from _holders(value)


def _near(value: Any, rng: random.Random) -> Any:
    """Mostly something of the same type."""
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.8:
        return rng.choice((*_INTEGERS, value + 1, max(value - 1, 0), value * 2, value // 2))
    if isinstance(value, str) and rng.random() < 0.8:
        return rng.choice((*_TEXTS, value + "x", value[:-1], value.upper()))
    return _value(rng)


def _value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(rng.choice((_INTEGERS, _TEXTS, _OTHERS))))


def _change_numbers(content: bytes, rng: random.Random) -> bytes:
    """Bytes or floats of a section replaced, swapped or copied."""
    if not content:
        return rng.randbytes(rng.choice((0, 1, 4)))
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 3))):
        word = rng.choice(_WORDS)
        at = rng.randrange(len(changed)) // 4 * 4
        other = rng.randrange(len(changed)) // 4 * 4
        match rng.randrange(4):
            case 0:
                changed[at : at + 4] = word[: len(changed) - at]
            case 1:
                changed[rng.randrange(len(changed))] = rng.choice((0, 1, 2, 3, 255, 128))
            case 2 if at + 4 <= len(changed) and other + 4 <= len(changed):
                changed[at : at + 4] = changed[other : other + 4]
            case _:
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _fitted(header: Any, sections: list[bytes], rng: random.Random) -> list[bytes]:
    """The sections cut or filled to the lengths that the header's sizes ask for, as far as it has
    any."""
    try:
        h, b, k = header["h"], header["b"], header["k"]
        sizes = [row[1:4] for row in header["modules"]]
        if not all(isinstance(size, int) for row in [[h, b, k], *sizes] for size in row):
            return sections
        n = sum(rank * (fan_in + fan_out) // b for fan_in, fan_out, rank in sizes)
        wanted = [4 * h * b, n * k * (1 if h <= 256 else 2), 4 * n * (k - 1)]
        wanted += [_length(dtype, shape) for _, dtype, shape in header["tensors"]]
    except (TypeError, KeyError, ValueError, ZeroDivisionError, AttributeError):
        return sections
    if any(not 0 <= size <= LONGEST for size in wanted):
        return sections
    padded = [*sections, *[b""] * (len(wanted) - len(sections))]
    return [_stretched(part, length, rng) for part, length in zip(padded, wanted, strict=False)]


def _length(dtype: Any, shape: Any) -> int:
    """Bytes of a tensor; TypeError where the shape is no list of numbers."""
    if not all(isinstance(size, int) for size in shape):
        raise TypeError
    return math.prod(shape) * BITS[dtype] // 8


def _stretched(content: bytes, length: int, rng: random.Random) -> bytes:
    source = content or rng.choice((b"\0", b"\0\0\x80>", b"\1"))
    return (source * (length // len(source) + 1))[:length]


def _rename(header: dict[str, Any], contents: dict[str, bytes], rng: random.Random) -> None:
    """A tensor under a name made of pieces of other names."""
    name = rng.choice(sorted(contents))
    other = rng.choice(sorted(contents))
    cut = rng.randrange(len(name) + 1)
    new = rng.choice(
        (name[:cut] + other[cut:], other.replace("_A", "_B"), f"{name}.default", other)
    )
    header[new] = header.pop(name, None)
    contents[new] = contents.pop(name)


def _placed(header: dict[str, Any], contents: dict[str, bytes], rng: random.Random) -> bytes:
    """The data, with (mostly) the offsets that belong to it and the lengths that shapes ask for."""
    body = b""
    keep = rng.random() < 0.1
    for name, entry in header.items():
        if name == "__metadata__" or not isinstance(entry, dict):
            continue
        content = contents.get(name, b"")
        try:
            length = _length(entry["dtype"], entry["shape"])
            if 0 <= length <= LONGEST and rng.random() < 0.9:
                content = _stretched(content, length, rng)
        except (TypeError, KeyError):
            pass
        if not keep:
            entry["data_offsets"] = [len(body), len(body) + len(content)]
        body += content
    return body
