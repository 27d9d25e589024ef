"""Random changes of values in a tree of maps and arrays."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from vbfmt.tensors import BITS

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


def change(tree: Any, rng: random.Random) -> None:
    """Replace, remove, repeat or move a random value in a tree of maps and arrays."""
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
    """Return a different value, usually of the same type."""
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.8:
        return rng.choice((*_INTEGERS, value + 1, max(value - 1, 0), value * 2, value // 2))
    if isinstance(value, str) and rng.random() < 0.8:
        return rng.choice((*_TEXTS, value + "x", value[:-1], value.upper()))
    return _value(rng)


def _value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(rng.choice((_INTEGERS, _TEXTS, _OTHERS))))
