"""How a valid file is given one fault, and the files that get one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack

from spec.corpus.valid import adapter, tensor
from tests import forge
from vbfmt import Module, dumps

# h = 3, b = 2, k = 2; one module, N = 3 rows: (0, 1), (1, 2), (2, 0), each 0.75 and 0.25.
PLAIN = dumps(adapter())
SECOND = dumps(adapter(Module("a", 2, 2, 1), Module("b", 2, 2, 1)))
THREE = dumps(adapter(k=3))  # three rows of 0.625, 0.25, 0.125
WITH_TENSOR = dumps(adapter(tensors={"t": tensor("U8", 3)}))
ALL_ONE = dumps(adapter(Module("layer", 1, 1, 1), h=1, b=1, k=1))
BANK, INDICES, WEIGHTS = 0, 1, 2
Change = Callable[[dict[str, Any]], object]


class Invalid(NamedTuple):
    """A refused file.

    Attributes:
        data: the file.
        kind, part: of the error, in the words of the README.
        rule: the section of the specification that is broken.
    """

    data: bytes
    kind: str
    part: str
    rule: str


def put(*path: Any) -> Change:
    """Sets the value at a path of keys and positions; the last of `path` is the value."""
    *route, last, value = path

    def change(header: dict[str, Any]) -> None:
        target: Any = header
        for step in route:
            target = target[step]
        target[last] = value

    return change


def with_contents(data: bytes, change: Change, *contents: tuple[int, bytes]) -> bytes:
    """The file with its header changed and with other bytes in some sections, by number (a number
    past the last is one more section): offsets, lengths and hashes are true again."""
    fields, header, rest = forge.parts(data)
    held = [rest[offset : offset + length] for offset, length, _ in header["sections"]]
    for number, content in contents:
        held[number : number + 1] = [content]
    body = b""
    header["sections"] = []
    for content in held:
        body += bytes(-len(body) % 64)
        header["sections"].append([len(body), len(content), hashlib.sha256(content).digest()])
        body += content
    change(header)
    return forge.join(fields, msgpack.packb(header, use_bin_type=True), body)
