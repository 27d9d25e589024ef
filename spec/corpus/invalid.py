"""The invalid files of the corpus. Each has one fault; its checksums and other lengths are
correct."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np

from spec.corpus import tables, thin
from spec.corpus.fault import (
    BANK,
    INDICES,
    PLAIN,
    THREE,
    WEIGHTS,
    WITH_TENSOR,
    Invalid,
    put,
)
from spec.corpus.valid import adapter
from tests import forge
from vbfmt import dumps


def _preambles() -> Iterator[tuple[str, Invalid]]:
    size = len(PLAIN)
    wrong_crc = bytearray(PLAIN)
    wrong_crc[28] ^= 1
    for name, data, kind, part in (
        ("empty-file", b"", "length", "whole file"),
        ("magic-alone", PLAIN[:8], "length", "whole file"),
        ("magic-cut-off", PLAIN[:5], "length", "whole file"),
        ("preamble-cut-off", PLAIN[:31], "length", "whole file"),
        (
            "header-at-the-limit",
            forge.with_preamble(PLAIN, header_length=2**24),
            "checksum",
            "preamble",
        ),
        ("header-cut-off", PLAIN[:100], "length", "whole file"),
        ("last-byte-missing", PLAIN[:-1], "length", "whole file"),
        ("one-byte-appended", PLAIN + b"\0", "length", "whole file"),
        ("two-files", PLAIN + PLAIN, "length", "whole file"),
        ("file-length-too-small", forge.with_preamble(PLAIN, file_length=size - 1), "length", ""),
        ("file-length-2-63", forge.with_preamble(PLAIN, file_length=2**63), "length", ""),
        ("text-mode", PLAIN.replace(b"\r\n", b"\n"), "magic", "preamble"),
        ("seven-bit", b"\x09" + PLAIN[1:], "magic", "preamble"),
        ("safetensors", struct.pack("<Q", 2) + b"{}", "magic", "preamble"),
        ("crc", bytes(wrong_crc), "checksum", "preamble or header"),
        ("major-damaged", PLAIN[:8] + b"\2" + PLAIN[9:], "checksum", "preamble or header"),
        ("header-damaged", PLAIN[:60] + b"\xff" + PLAIN[61:], "checksum", "preamble or header"),
        ("major-0", forge.with_preamble(PLAIN, major=0), "version", "preamble"),
        ("major-2", forge.with_preamble(PLAIN, major=2), "version", "preamble"),
        ("reserved", forge.with_preamble(PLAIN, reserved=1), "layout", "preamble"),
        (
            "header-length-beyond-file",
            forge.with_preamble(PLAIN, header_length=size - 31),
            "checksum",
            "preamble",
        ),
        (
            "header-length-beyond-limit",
            forge.with_preamble(PLAIN, header_length=2**32 - 1),
            "checksum",
            "preamble",
        ),
    ):
        yield name, Invalid(data, kind, part or "whole file", "2")


def _encodings() -> Iterator[tuple[str, Invalid]]:
    header = forge.header_of(PLAIN)

    def replaced(usual: bytes, unusual: bytes) -> bytes:
        assert header.count(usual) == 1, usual
        return header.replace(usual, unusual)

    h_is = b"\xa1h\x03"
    name = b"\xa5layer"
    for what, data in (
        ("empty", b""),
        ("not-a-map", b"\x90"),
        ("nil", b"\xc0"),
        ("two-maps", header + b"\x80"),
        ("unused-byte", b"\xc1" + header[1:]),
        ("cut-off-inside", header[:-1]),
        ("long-map", b"\xde\0\x0b" + header[1:]),
        ("long-array", replaced(b"\xa7modules\x91", b"\xa7modules\xdc\0\1")),
        ("long-string", replaced(name, b"\xd9\x05layer")),
        ("longer-string", replaced(name, b"\xda\0\x05layer")),
        ("long-binary", replaced(_hash(BANK), b"\xc5\0\x20" + _hash(BANK)[2:])),
        ("long-integer", replaced(h_is, b"\xa1h\xcc\3")),
        ("longest-integer", replaced(h_is, b"\xa1h\xcf" + bytes(7) + b"\3")),
        ("long-integer-of-2", replaced(h_is, b"\xa1h\xcd\0\3")),
        ("long-integer-of-4", replaced(h_is, b"\xa1h\xce\0\0\0\3")),
        ("signed-integer", replaced(h_is, b"\xa1h\xd0\3")),
        ("longest-map", b"\xdf\0\0\0\x0b" + header[1:]),
        ("longest-array", replaced(b"\xa7modules\x91", b"\xa7modules\xdd\0\0\0\1")),
        ("longest-string", replaced(name, b"\xdb\0\0\0\5layer")),
        ("longest-binary", replaced(_hash(BANK), b"\xc6\0\0\0\x20" + _hash(BANK)[2:])),
        ("negative", replaced(h_is, b"\xa1h\xff")),
        ("float", replaced(h_is, b"\xa1h\xcb" + struct.pack(">d", 3))),
        ("float-single", replaced(h_is, b"\xa1h\xca" + struct.pack(">f", 3))),
        ("extension", replaced(h_is, b"\xa1h\xd4\1\0")),
        ("timestamp", replaced(h_is, b"\xa1h\xd6\xff" + bytes(4))),
        ("key-twice", b"\x8c\xa1h\3" + header[1:]),
        ("key-not-a-string", b"\x8c" + header[1:] + b"\xc4\1z\0"),
        ("key-an-integer", b"\x8c" + header[1:] + b"\1\0"),
        ("not-utf-8", replaced(name, b"\xa5lay\xffr")),
        ("utf-8-surrogate", replaced(name, b"\xa5la\xed\xa0\x80")),
        ("utf-8-overlong", replaced(name, b"\xa5lay\xc1\xa5")),
        ("count-beyond-file", replaced(b"\xa7modules\x91", b"\xa7modules\xdd\xff\xff\xff\xff")),
        ("length-beyond-file", replaced(name, b"\xdb\xff\xff\xff\xfflayer")),
        ("nested-500-deep", replaced(b"\xa7tensors\x90", b"\xa7tensors" + b"\x91" * 500)),
    ):
        yield (
            f"msgpack-{what}",
            Invalid(forge.with_header_bytes(PLAIN, data), "header", "header", "3"),
        )


def _hash(section: int) -> bytes:
    packed: bytes = msgpack.packb(forge.parts(PLAIN)[1]["sections"][section][2])
    return packed


def _unknown_values() -> Iterator[tuple[str, Invalid]]:
    """Yield files with a forbidden value under an unknown key. Readers skip the key, but check its
    value."""
    start = forge.header_of(forge.with_header(PLAIN, put("optional_features", ["z"])))
    start = b"\x8c" + start[1:] + b"\xa1z"
    for what, value in (
        ("negative", b"\xff"),
        ("float", b"\xcb" + bytes(8)),
        ("extension", b"\xd4\1\0"),
        ("timestamp", b"\xd6\xff" + bytes(4)),
        ("binary-key", b"\x81\xc4\1a\0"),
        ("key-twice", b"\x82\xa1a\0\xa1a\0"),
        ("nine-deep", b"\x91" * 7 + b"\x90"),
        ("long-integer", b"\xcc\0"),
        ("signed-integer", b"\xd1\1\0"),
        ("long-string", b"\xd9\1a"),
        ("not-utf-8", b"\xa1\xff"),
        ("utf-8-surrogate", b"\xa3\xed\xa0\x80"),
        ("utf-8-overlong", b"\xa2\xc1\xa5"),
    ):
        data = forge.with_header_bytes(PLAIN, start + value)
        yield f"unknown-key-{what}", Invalid(data, "header", "header", "3")


def _features(header: dict[str, Any]) -> None:
    header["required_features"] = ["bank.elsewhere"]
    header["h"] = "not even a number"


def _headers() -> Iterator[tuple[str, Invalid]]:
    for name, change, kind, part, rule in (
        ("required-feature", put("required_features", ["zzz"]), "feature", "header", "3"),
        ("required-feature-first", _features, "feature", "header", "3"),
        ("missing-k", lambda h: h.pop("k"), "header", "header", "3"),
        ("missing-metadata", lambda h: h.pop("metadata"), "header", "header", "3"),
        ("missing-features", lambda h: h.pop("required_features"), "header", "header", "3"),
        ("keys-swapped", lambda h: h.update(h=h.pop("h")), "header", "header", "3"),
        ("unknown-key", put("zzz", 1), "header", "header", "3"),
        (
            "feature-number",
            put("optional_features", [1]),
            "header",
            "header, optional_features",
            "3",
        ),
        (
            "features-map",
            put("required_features", {}),
            "header",
            "header, required_features",
            "3",
        ),
        (
            "features-string",
            put("optional_features", "z"),
            "header",
            "header, optional_features",
            "3",
        ),
        ("h-nil", put("h", None), "header", "header, h", "3"),
        ("h-string", put("h", "3"), "header", "header, h", "3"),
        ("h-0", put("h", 0), "content", "bank", "3"),
        ("h-65537", put("h", 65537), "content", "bank", "3"),
        ("b-0", put("b", 0), "content", "bank", "3"),
        ("b-2-64", put("b", 2**64 - 1), "content", "module layer", "4"),
        ("k-0", put("k", 0), "content", "indices", "3"),
        ("k-above-h", put("k", 4), "content", "indices", "3"),
        ("modules-none", put("modules", []), "content", "module table", "3"),
        ("modules-map", put("modules", {}), "header", "header, modules", "3"),
        ("base-model-of-3", put("base_model", [None] * 3), "header", "header, base_model", "3"),
        ("base-model-of-1", put("base_model", [None]), "header", "header, base_model", "3"),
        ("base-model-string", put("base_model", "x"), "header", "header, base_model", "3"),
        ("base-model-number", put("base_model", [1, None]), "header", "header, base_model", "3"),
        ("metadata-array", put("metadata", []), "header", "header, metadata", "3"),
        ("metadata-number", put("metadata", {"a": 1}), "header", "header, metadata", "3"),
    ):
        yield name, Invalid(forge.with_header(PLAIN, change), kind, part, rule)
    newer = forge.with_preamble(PLAIN, minor=1)
    descending = forge.with_header(newer, lambda h: h.update(beta=1, alpha=1))
    yield "minor-1-keys-descend", Invalid(descending, "header", "header", "3")
    by_units = forge.with_header(newer, lambda h: h.update({"\U00010000": 1, "\uffff": 1}))
    yield "minor-1-keys-by-utf-16", Invalid(by_units, "header", "header", "3")
    undeclared = forge.with_header(PLAIN, lambda h: h.update(optional_features=["a"], b2=1))
    yield "unknown-key-not-declared", Invalid(undeclared, "header", "header", "3")
    h_again = b"\x8c" + forge.header_of(newer)[1:] + b"\xa1h\3"
    yield (
        "minor-1-key-twice",
        Invalid(forge.with_header_bytes(newer, h_again), "header", "header", "3"),
    )
    declared = forge.header_of(forge.with_header(PLAIN, put("optional_features", ["h"])))
    h_again = b"\x8c" + declared[1:] + b"\xa1h\3"
    yield (
        "declared-key-twice",
        Invalid(forge.with_header_bytes(PLAIN, h_again), "header", "header", "3"),
    )
    required = forge.with_header(newer, put("required_features", ["z"]))
    yield "minor-1-required-feature", Invalid(required, "feature", "header", "3")
    reserved = forge.with_preamble(newer, reserved=1)
    yield "minor-1-reserved", Invalid(reserved, "layout", "preamble", "2")
    long_after = forge.header_of(forge.with_header(PLAIN, put("required_features", ["z"])))
    assert long_after.count(b"\xa1h\3") == 1
    long_after = long_after.replace(b"\xa1h\3", b"\xa1h\xcc\3")
    yield (
        "required-feature-after-encoding",
        Invalid(forge.with_header_bytes(PLAIN, long_after), "header", "header", "3"),
    )


def _configs() -> Iterator[tuple[str, Invalid]]:
    for name, text in (
        ("not-json", "{"),
        ("empty", ""),
        ("array", "[]"),
        ("number", "1"),
        ("nan", '{"a":NaN}'),
        ("infinity", '{"a":-Infinity}'),
        ("key-twice", '{"a":1,"a":1}'),
        ("key-twice-escaped", '{"a":1,"\\u0061":1}'),
        ("key-twice-inside", '{"a":[{"b":1,"b":1}]}'),
        ("65-deep", '{"a":' + "[" * 64 + "]" * 64 + "}"),
        ("5000-deep", '{"a":' + "[" * 5000 + "]" * 5000 + "}"),
        ("1001-digits", '{"a":' + "1" * 1001 + "}"),
        ("comment", '{"a":1/**/}'),
        ("trailing-comma", '{"a":1,}'),
        ("single-quotes", "{'a':1}"),
        ("leading-zero", '{"a":01}'),
        ("plus", '{"a":+1}'),
        ("bare-point", '{"a":1.}'),
        ("control-in-string", '{"a":"\n"}'),
        ("bad-escape", '{"a":"\\x41"}'),
        ("short-escape", '{"a":"\\u12"}'),
        ("odd-digits", '{"a":"\\u00_4"}'),
        ("no-break-space", '{\u00a0"a":1}'),
        ("byte-order-mark", '\ufeff{"a":1}'),
        ("two-values", "{}{}"),
        ("arabic-digits", '{"a":\u0661}'),
    ):
        data = forge.with_header(PLAIN, put("config", text))
        yield f"config-{name}", Invalid(data, "content", "config", "6")
    number = forge.with_header(PLAIN, put("config", 1))
    yield "config-not-a-string", Invalid(number, "header", "header, config", "3")


def _padding() -> Iterator[tuple[str, Invalid]]:
    start = forge.data_start(PLAIN)
    for name, position, part in (
        ("before-bank", start - 1, "before bank"),
        ("after-header", 32 + len(forge.header_of(PLAIN)), "before bank"),
        ("before-indices", start + 24, "before indices"),
        ("before-weights", start + 127, "before weights"),
    ):
        data = bytearray(PLAIN)
        data[position] = 1
        yield f"padding-{name}", Invalid(bytes(data), "layout", part, "2")
    data = forge.with_preamble(PLAIN + bytes(64), file_length=len(PLAIN) + 64)
    yield "zeros-after-the-last-section", Invalid(data, "layout", "sections", "2")


def _damage() -> Iterator[tuple[str, Invalid]]:
    header = forge.parts(WITH_TENSOR)[1]
    start = forge.data_start(WITH_TENSOR)
    names = ("bank", "indices", "weights", "tensor t")
    for name, (offset, _, _) in zip(names, header["sections"], strict=True):
        data = bytearray(WITH_TENSOR)
        data[start + offset] ^= 1
        yield f"damaged-{name.replace(' ', '-')}", Invalid(bytes(data), "checksum", name, "3")
    wrong_hash = forge.with_header(PLAIN, put("sections", 0, 2, bytes(32)))
    yield "hash-of-zeros", Invalid(wrong_hash, "checksum", "bank", "3")


def _values() -> Iterator[tuple[str, Invalid]]:
    def in_section(
        name: str, data: bytes, section: int, form: str, *places: Any
    ) -> tuple[str, Invalid]:
        def change(content: bytearray) -> None:
            for position, value in zip(places[::2], places[1::2], strict=True):
                struct.pack_into(form, content, position, value)

        part = ("bank", "indices", "weights")[section]
        return name, Invalid(forge.with_section(data, section, change), "content", part, "7")

    inf, nan = float("inf"), float("nan")
    above_one = float(np.nextafter(np.float32(1), np.float32(2)))
    above_half = float(np.nextafter(np.float32(0.5), np.float32(1)))
    wide = dumps(adapter(h=257, b=1))
    yield in_section("bank-nan", PLAIN, BANK, "<f", 0, nan)
    yield in_section("bank-signalling-nan", PLAIN, BANK, "<I", 8, 0x7F800001)
    yield in_section("bank-infinity", PLAIN, BANK, "<f", 20, inf)
    yield in_section("bank-minus-infinity", PLAIN, BANK, "<f", 4, -inf)
    yield in_section("index-is-h", PLAIN, INDICES, "<B", 1, 3)
    yield in_section("index-255", PLAIN, INDICES, "<B", 5, 255)
    yield in_section("index-wide-is-h", wide, INDICES, "<H", 2, 257)
    yield in_section("index-wide-other-endian", wide, INDICES, ">H", 2, 5)
    yield in_section("index-twice", PLAIN, INDICES, "<B", 1, 0)
    yield in_section("index-twice-apart", THREE, INDICES, "<B", 2, 0)
    yield in_section("weight-nan", PLAIN, WEIGHTS, "<f", 0, nan)
    yield in_section("weight-infinity", PLAIN, WEIGHTS, "<f", 4, inf)
    yield in_section("weight-negative", PLAIN, WEIGHTS, "<f", 8, -1e-9)
    yield in_section("weight-negative-subnormal", PLAIN, WEIGHTS, "<I", 0, 0x80000001)
    yield in_section("weight-negative-zero", PLAIN, WEIGHTS, "<f", 0, -0.0)
    yield in_section("weight-above-1", PLAIN, WEIGHTS, "<f", 0, above_one)
    yield in_section("weight-larger-than-the-first", PLAIN, WEIGHTS, "<f", 0, above_half)
    yield in_section("weights-beyond-1-in-sum", THREE, WEIGHTS, "<f", 0, 0.75, 4, 0.75)
    yield in_section("weights-ascend", THREE, WEIGHTS, "<f", 0, 0.125, 4, 0.25)
    yield in_section("weights-tie-by-index", PLAIN, WEIGHTS, "<f", 8, 0.5)  # row (2, 0)
    nearest = float(np.float32(1 / 3))
    yield in_section("weights-thirds-to-nearest", THREE, WEIGHTS, "<f", 0, nearest, 4, nearest)


def files() -> dict[str, Invalid]:
    """Return name → the file and its verdict."""
    groups = (
        _preambles,
        _encodings,
        _unknown_values,
        _headers,
        tables.modules,
        tables.tensors,
        tables.sections,
        tables.booleans,
        tables.names,
        _configs,
        _padding,
        _damage,
        _values,
        thin.invalid,
    )
    result: dict[str, Invalid] = {}
    for group in groups:
        for name, invalid in group():
            assert name not in result, name
            result[name] = invalid
    return result
