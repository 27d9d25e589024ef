"""Changes of bytes and numbers that do not depend on their meaning."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from typing import Any

from vbfmt.tensors import BITS

Plain = Callable[[bytes], bytes]
"""Changes bytes without knowing what they mean: `scramble`, or a fuzzer's own mutation."""

LONGEST = 1 << 16
"""Bytes of an input."""

_WORDS = tuple(
    struct.pack("<f", x)
    for x in (0.0, -0.0, 1.0, 0.5, 0.25, -1.0, 1e-45, 3.4e38, math.nan, math.inf, -math.inf, 1 / 3)
)


def scramble(data: bytes, rng: random.Random) -> bytes:
    """Return data with bytes flipped, removed, inserted or repeated."""
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


def change_numbers(content: bytes, rng: random.Random) -> bytes:
    """Return a section with bytes or floats replaced, swapped or copied."""
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


def stretched(content: bytes, length: int, rng: random.Random) -> bytes:
    source = content or rng.choice((b"\0", b"\0\0\x80>", b"\1"))
    return (source * (length // len(source) + 1))[:length]


def length_of(dtype: Any, shape: Any) -> int:
    """Return the number of bytes of a tensor.

    Raises:
        TypeError: the shape is not a list of numbers."""
    if not all(isinstance(size, int) for size in shape):
        raise TypeError
    return math.prod(shape) * BITS[dtype] // 8
