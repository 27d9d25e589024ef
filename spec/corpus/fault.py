"""Put one fault into a valid file, and the base files for this."""

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
        kind, part: kind and part of the error, as the README names them.
        rule: the section of the specification that is broken.
    """

    data: bytes
    kind: str
    part: str
    rule: str


def put(*path: Any) -> Change:
    """Set a value of the header. `path` gives keys and positions, and the value as its last
    item."""
    *route, last, value = path

    def change(header: dict[str, Any]) -> None:
        target: Any = header
        for step in route:
            target = target[step]
        target[last] = value

    return change


def with_contents(data: bytes, change: Change, *contents: tuple[int, bytes]) -> bytes:
    """Return the file with a changed header and new bytes for some sections, by number (the number
    after the last adds a section). Offsets, lengths and hashes are updated."""
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
