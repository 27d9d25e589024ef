"""Invalid rows of the header's tables (modules, tensors, sections), and invalid names anywhere. The
sections have the content that a reader without the broken rule would expect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack

from spec.corpus.fault import (
    ALL_ONE,
    BANK,
    INDICES,
    PLAIN,
    SECOND,
    WEIGHTS,
    Change,
    Invalid,
    put,
    with_contents,
)
from spec.corpus.valid import adapter
from tests import forge
from vbfmt import Module, dumps

FAULTY_NAMES = {
    "empty": "",
    "1f": "lay\x1fr",
    "control": "a\x1b",
    "delete": "a\x7f",
    "c1": "a\x9f",
    "1025": "ä" * 512 + "x",
}


def modules() -> Iterator[tuple[str, Invalid]]:
    """Yield invalid module tables, each with the number of indices and weights that its rows
    require."""
    for name, row, rows, kind in (
        ("in-features-0", ["layer", 0, 2, 2, False], 2, "content"),
        ("in-features-3", ["layer", 3, 2, 2, False], 5, "content"),
        ("out-features-0", ["layer", 2, 0, 2, False], 2, "content"),
        ("out-features-3", ["layer", 4, 3, 2, False], 7, "content"),
        ("in-and-out-features-3", ["layer", 3, 3, 1, False], 3, "content"),
        ("rank-0", ["layer", 4, 2, 0, False], 0, "content"),
        ("rank-wraps", ["layer", 4, 2, 2**63 + 1, False], 3, "header"),
        ("module-of-4", ["layer", 4, 2, 1], 3, "header"),
        ("module-of-6", ["layer", 4, 2, 1, False, 0], 3, "header"),
        ("module-name-number", [1, 4, 2, 1, False], 3, "header"),
        ("orientation-number", ["layer", 4, 2, 1, 0], 3, "header"),
    ):
        _, header, rest = forge.parts(dumps(adapter(Module("layer", 2 * rows or 2, 2, 2))))
        held = [rest[at : at + length] for at, length, _ in header["sections"]]
        indices, weights = held[INDICES][: 2 * rows], held[WEIGHTS][: 4 * rows]
        data = with_contents(PLAIN, put("modules", [row]), (INDICES, indices), (WEIGHTS, weights))
        if name == "rank-wraps":
            yield name, Invalid(data, kind, "indices", "2")
        else:
            part = "module layer" if kind == "content" else "header, modules"
            yield name, Invalid(data, kind, part, "4")
    swap: Change = lambda h: h["modules"].reverse()  # noqa: E731
    twice = put("modules", 1, 0, "a")
    yield "modules-descend", Invalid(forge.with_header(SECOND, swap), "content", "module 1", "4")
    yield "modules-twice", Invalid(forge.with_header(SECOND, twice), "content", "module 1", "4")


def _with_tensors(*tensors: tuple[Any, int]) -> bytes:
    """Return PLAIN with these rows in its table of tensors, and sections of these lengths."""
    return with_contents(
        PLAIN,
        put("tensors", [row for row, _ in tensors]),
        *((3 + i, bytes(range(1, 1 + length))) for i, (_, length) in enumerate(tensors)),
    )


def tensors() -> Iterator[tuple[str, Invalid]]:
    """Yield invalid tables of other tensors, each with its sections."""
    for name, row, length, part, rule in (
        ("of-2", ["t", "U8"], 1, "header, tensors", "5"),
        ("of-4", ["t", "U8", [1], 0], 1, "header, tensors", "5"),
        ("name-number", [1, "U8", [1]], 1, "header, tensors", "5"),
        ("dtype-unknown", ["t", "F128", [1]], 16, "header, tensors", "5"),
        ("dtype-lower", ["t", "f32", [1]], 4, "header, tensors", "5"),
        ("dtype-list", ["t", [], [1]], 4, "header, tensors", "5"),
        ("shape-number", ["t", "U8", 1], 1, "header, tensors", "5"),
        ("shape-string", ["t", "U8", ["1"]], 1, "header, tensors", "5"),
        ("shape-boolean", ["t", "U8", [True]], 1, "header, tensors", "3"),
        ("half-byte", ["t", "F4", [1]], 0, "tensor t", "5"),
        ("half-byte-rounded-up", ["t", "F4", [1]], 1, "tensor t", "5"),
        ("shape-wraps", ["t", "U8", [2**63, 2]], 0, "tensor t", "2"),
        ("shape-wraps-bits", ["t", "U64", [2**58 + 1]], 8, "tensor t", "2"),
        ("too-long", ["t", "U8", [2]], 1, "tensor t", "5"),
        ("too-short", ["t", "U8", [1]], 2, "tensor t", "5"),
    ):
        yield f"tensor-{name}", Invalid(_with_tensors((row, length)), "header", part, rule)
    for name, names in (("descend", "ba"), ("twice", "aa")):
        two = _with_tensors(*(([each, "U8", [1]], 1) for each in names))
        yield f"tensors-{name}", Invalid(two, "content", "other tensor 1", "5")
    without = forge.with_header(PLAIN, put("tensors", [["t", "U8", [0]]]))
    yield "tensor-no-section", Invalid(without, "header", "header", "3")
    nil = forge.with_header(PLAIN, put("tensors", None))
    yield "tensors-nil", Invalid(nil, "header", "header, tensors", "5")


def sections() -> Iterator[tuple[str, Invalid]]:
    """Yield invalid tables of sections."""
    _, header, rest = forge.parts(PLAIN)
    for number, name, length in (
        (BANK, "bank", 28),
        (INDICES, "indices", 12),
        (WEIGHTS, "weights", 24),
    ):
        offset, old, _ = header["sections"][number]
        content = rest[offset : offset + old] + bytes(length - old)
        longer = with_contents(PLAIN, lambda h: None, (number, content))
        yield f"{name}-length", Invalid(longer, "header", name, "3")
    too_many = with_contents(PLAIN, lambda h: None, (3, b""))
    yield "section-too-many", Invalid(too_many, "header", "header", "3")
    for name, change, kind, part, rule in (
        ("section-missing", lambda h: h["sections"].pop(), "header", "header", "3"),
        ("section-of-2", lambda h: h["sections"][0].pop(), "header", "header, sections", "3"),
        ("section-of-4", lambda h: h["sections"][0].append(0), "header", "header, sections", "3"),
        ("hash-of-31", put("sections", 0, 2, bytes(31)), "header", "header, sections", "3"),
        ("hash-as-text", put("sections", 0, 2, "x" * 32), "header", "header, sections", "3"),
        ("offset-not-0", put("sections", 0, 0, 64), "layout", "bank", "2"),
        ("offset-hole", put("sections", 1, 0, 128), "layout", "indices", "2"),
        ("offset-overlap", put("sections", 1, 0, 0), "layout", "indices", "2"),
        ("offset-unaligned", put("sections", 1, 0, 24), "layout", "indices", "2"),
        ("offset-beyond-file", put("sections", 2, 0, 2**63), "layout", "weights", "2"),
    ):
        yield name, Invalid(forge.with_header(PLAIN, change), kind, part, rule)


def booleans() -> Iterator[tuple[str, Invalid]]:
    """Yield a file whose numbers are all 1 or 0, with one number replaced by a boolean. Booleans
    are not integers."""
    for name, change, what in (
        ("h", put("h", True), "h"),
        ("b", put("b", True), "b"),
        ("k", put("k", True), "k"),
        ("in-features", put("modules", 0, 1, True), "modules"),
        ("out-features", put("modules", 0, 2, True), "modules"),
        ("rank", put("modules", 0, 3, True), "modules"),
        ("offset", put("sections", 0, 0, False), "sections"),
        ("length", put("sections", 2, 1, False), "sections"),
    ):
        data = forge.with_header(ALL_ONE, change)
        yield f"{name}-boolean", Invalid(data, "header", f"header, {what}", "3")


def names() -> Iterator[tuple[str, Invalid]]:
    """Yield files with an invalid name: of a module, a tensor, a feature, or in the metadata."""
    for fault, name in FAULTY_NAMES.items():
        module = forge.with_header(PLAIN, put("modules", 0, 0, name))
        yield f"module-name-{fault}", Invalid(module, "content", "module 0", "3")
        tensor = _with_tensors(([name, "U8", [1]], 1))
        yield f"tensor-name-{fault}", Invalid(tensor, "content", "other tensor 0", "3")
        feature = forge.with_header(PLAIN, put("optional_features", [name]))
        part = "header, optional_features"
        yield f"feature-{fault}", Invalid(feature, "header", part, "3")
        metadata = forge.with_header(PLAIN, put("metadata", {name: ""}))
        yield f"metadata-name-{fault}", Invalid(metadata, "content", "metadata 0", "3")
    descending = forge.with_header(PLAIN, put("metadata", {"b": "", "a": ""}))
    yield "metadata-descends", Invalid(descending, "content", "metadata 1", "3")
    once = msgpack.packb({"metadata": {"a": ""}})[1:]
    held = forge.header_of(forge.with_header(PLAIN, put("metadata", {"a": ""})))
    assert held.endswith(once)
    twice = held[: -len(once)] + once.replace(b"\x81", b"\x82") + b"\xa1a\xa0"
    yield "metadata-twice", Invalid(forge.with_header_bytes(PLAIN, twice), "header", "header", "3")
    for name, features in (("twice", "aa"), ("descend-optional", "ba")):
        data = forge.with_header(PLAIN, put("optional_features", list(features)))
        yield f"features-{name}", Invalid(data, "header", "header, optional_features", "3")
    # A reader without the rule about order refuses this file for another reason.
    required = forge.with_header(PLAIN, put("required_features", ["b", "a"]))
    yield "features-descend", Invalid(required, "header", "header, required_features", "3")
