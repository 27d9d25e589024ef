"""Damaged packed files with corrected lengths and checksums."""

from __future__ import annotations

import copy
import hashlib
import random
import struct
from pathlib import Path
from typing import Any

import msgpack

from tests import forge
from tests.fuzz import trees
from tests.fuzz.content import LONGEST, Plain, change_numbers, length_of, scramble, stretched

CORPUS = Path(__file__).parents[2] / "spec" / "corpus"
BANKS = CORPUS / "banks"


def seeds() -> list[bytes]:
    """Return the small files of the corpus, valid and invalid."""
    files = sorted(CORPUS.glob("*/*.vblora"))
    return [data for file in files if len(data := file.read_bytes()) <= LONGEST]


def damaged(data: bytes, rng: random.Random, plain: Plain | None = None) -> bytes:
    """Return a packed file with one to four changes. One in four inputs is changed without regard
    to the structure, and only its front and lengths are corrected.

    Args:
        plain: changes bytes without knowing what they mean (a fuzzer's own mutation).
    """
    plain = plain or (lambda chunk: scramble(chunk, rng))
    if rng.random() < 0.25:
        return repaired(plain(data))[:LONGEST]
    try:
        fields, header, rest = forge.parts(data)
        elsewhere = _bank_elsewhere(header)
        sections = _sections(header, rest)[len(elsewhere) :]
    except (ValueError, struct.error, TypeError, KeyError, IndexError):
        return plain(data)[:LONGEST]
    fields = list(fields)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        kind = rng.random()
        if kind < 0.05:
            fields[rng.choice((1, 2, 5))] = rng.choice((0, 1, 2, 255, 65535))
        elif kind < 0.5 or not sections:
            trees.change(header, rng)
        else:
            at = rng.randrange(len(sections))
            sections[at] = change_numbers(sections[at], rng) if kind < 0.85 else plain(sections[at])
    if rng.random() < 0.7:
        held = [b""] * len(elsewhere)
        sections = _fitted(header, held + sections, rng)[len(held) :]
    body = b""
    entries = elsewhere
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
    """Return the file with correct lengths and CRC, if it has a front."""
    if len(data) < 32 or forge.PREAMBLE.unpack_from(data)[3] > len(data) - 32:
        return data
    return forge.with_preamble(data, file_length=len(data))


def is_thin(data: bytes) -> bool:
    """Return whether a valid file has an external bank."""
    return bool(_bank_elsewhere(forge.parts(data)[1]))


def _bank_elsewhere(header: dict[str, Any]) -> list[Any]:
    """Return a list with the bank's entry if the bank is external, else an empty list."""
    return copy.deepcopy(header["sections"][:1]) if header["required_features"] else []


def _sections(header: dict[str, Any], rest: bytes) -> list[bytes]:
    return [rest[offset : offset + length] for offset, length, _ in header["sections"]]


def _fitted(header: Any, sections: list[bytes], rng: random.Random) -> list[bytes]:
    """Return the sections, truncated or padded to the lengths that the header's sizes require, if
    it has sizes."""
    try:
        h, b, k = header["h"], header["b"], header["k"]
        sizes = [row[1:4] for row in header["modules"]]
        if not all(isinstance(size, int) for row in [[h, b, k], *sizes] for size in row):
            return sections
        n = sum(rank * (fan_in + fan_out) // b for fan_in, fan_out, rank in sizes)
        wanted = [4 * h * b, n * k * (1 if h <= 256 else 2), 4 * n * (k - 1)]
        wanted += [length_of(dtype, shape) for _, dtype, shape in header["tensors"]]
    except (TypeError, KeyError, ValueError, ZeroDivisionError, AttributeError):
        return sections
    if any(not 0 <= size <= LONGEST for size in wanted):
        return sections
    padded = [*sections, *[b""] * (len(wanted) - len(sections))]
    return [stretched(part, length, rng) for part, length in zip(padded, wanted, strict=False)]
