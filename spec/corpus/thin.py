"""Files with an external bank (section 12), made from embedded files as the specification says,
without the library."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np

from spec.corpus.fault import BANK, INDICES, PLAIN, WITH_TENSOR, Invalid, put, with_contents
from spec.corpus.valid import adapter, optional, tensor
from tests import forge
from vbfmt import Adapter, Module, dumps

NAME = "external_bank"


def thin(data: bytes) -> bytes:
    """Return an embedded file without its bank."""
    fields, header, rest = forge.parts(data)
    held = [rest[offset : offset + length] for offset, length, _ in header["sections"]]
    header["required_features"] = sorted([*header["required_features"], NAME])
    body = b""
    for entry, content in zip(header["sections"][1:], held[1:], strict=True):
        body += bytes(-len(body) % 64)
        entry[0] = len(body)
        body += content
    return forge.join(fields, msgpack.packb(header, use_bin_type=True), body)


def bank_of(data: bytes) -> bytes:
    """Return the bank in an embedded file."""
    _, header, rest = forge.parts(data)
    offset, length, _ = header["sections"][BANK]
    return rest[offset : offset + length]


def file_name(bank: bytes) -> str:
    """Return the file name of a bank."""
    return f"{hashlib.sha256(bank).hexdigest()}.bank"


def valid() -> dict[str, tuple[bytes, Adapter]]:
    """Return name → the embedded form and its content."""
    plain = adapter()
    large = adapter(h=17, b=16)
    made = {
        "plain": plain,
        "h-257": adapter(h=257, b=1, first=255),
        "k-1": adapter(k=1),
        "one-vector": adapter(h=1, b=1, k=1),
        "several-modules": adapter(Module("a", 4, 2, 1), Module("b", 4, 2, 5)),
        "with-tensors": adapter(tensors={"t": tensor("U8", 65), "u": tensor("BF16", 3)}),
        "with-texts": adapter(
            base_model="example/base", base_revision="1", config="{}", metadata={"a": "b"}
        ),
        # 1088 bytes of bank: the offsets of the embedded form have three bytes instead of one.
        "wider-offsets": large,
        "bank-negative-zero": adapter(bank=[-0.0, 0.0, 1, -1, 2, -2]),
    }
    files = {name: (dumps(value), value) for name, value in made.items()}
    newer = forge.with_preamble(dumps(plain), minor=7)
    files["minor-7-with-keys"] = (
        forge.with_header(newer, lambda h: h.update({"": 0, "z": {"b": 1, "a": [2]}})),
        plain,
    )
    files["optional-feature-with-key"] = optional("colour", colour={"red": [1, 2**40]}), plain
    files["optional-of-that-name"] = optional(NAME), plain
    return files


def _huge(b: int) -> bytes:
    """Return a file whose header claims a bank of one vector with `b` elements, and two rows."""

    def change(header: dict[str, Any]) -> None:
        header["b"] = b
        header["modules"][0][1:3] = [b, b]
        header["sections"][BANK][1] = 4 * b

    return forge.with_header(thin(dumps(adapter(Module("layer", 1, 1, 1), h=1, b=1, k=1))), change)


def invalid() -> Iterator[tuple[str, Invalid]]:
    """Yield each name with its thin file and verdict."""
    plain, embedded = thin(PLAIN), PLAIN
    _, header, _ = forge.parts(embedded)
    offsets = [entry[0] for entry in header["sections"]]
    for name, data, kind, part, rule in (
        # A reader without this rule would read the bank's bytes as indices.
        (
            "bank-inside",
            forge.with_header(embedded, put("required_features", [NAME])),
            "layout",
            "indices",
            "12",
        ),
        (
            "offsets-of-the-embedded-form",
            forge.with_header(plain, _with_offsets(offsets)),
            "layout",
            "indices",
            "12",
        ),
        ("bank-not-at-0", forge.with_header(plain, put("sections", 0, 0, 64)), *_AT_BANK, "12"),
        (
            "bank-of-no-length",
            forge.with_header(plain, put("sections", 0, 1, 0)),
            "header",
            "bank",
            "12",
        ),
        (
            "named-twice",
            forge.with_header(plain, put("required_features", [NAME, NAME])),
            "header",
            "header, required_features",
            "3",
        ),
        (
            "and-an-unknown-one",
            forge.with_header(plain, put("required_features", [NAME, "zzz"])),
            "feature",
            "header",
            "3",
        ),
        ("embedded-form-too-long", _huge(2**62 - 1), "layout", "sections", "12"),
        ("last-byte-missing", plain[:-1], "length", "whole file", "2"),
        ("damaged-indices", _flipped(plain, INDICES), "checksum", "indices", "3"),
        ("padding", _padded(plain), "layout", "before indices", "2"),
        ("index-is-h", _index_is_h(plain), "content", "indices", "7"),
        ("bank-with-nan", thin(_with_bank(_NAN)), "content", "bank", "7"),
        # The banks of these are not in banks/, or have content that does not match their names.
        ("bank-missing", thin(_with_bank(_MISSING)), "bank", "bank", "12"),
        ("bank-another", thin(_with_bank(_ANOTHER)), "checksum", "bank", "12"),
        ("bank-shorter", thin(_with_bank(_SHORTER)), "checksum", "bank", "12"),
        ("bank-longer", thin(_with_bank(_LONGER)), "checksum", "bank", "12"),
        ("bank-of-2-60-bytes", _huge(2**58), "checksum", "bank", "12"),
    ):
        yield f"thin-{name}", Invalid(data, kind, part, rule)
    assert forge.parts(WITH_TENSOR)[1]["tensors"]


def banks() -> dict[str, bytes]:
    """Return name → bank file, for the valid files and the invalid files that have one."""
    good = [bank_of(data) for data, _ in valid().values()]
    good += [bank_of(PLAIN), _NAN]
    wrong = {
        file_name(_ANOTHER): _ANOTHER[::-1],
        file_name(_SHORTER): _SHORTER[:-4],
        file_name(_LONGER): _LONGER + bytes(4),
    }
    return {**{file_name(bank): bank for bank in good}, **wrong}


_AT_BANK = ("layout", "bank")
_NAN = np.array([0, 1, np.nan, 3, 4, 5], "<f4").tobytes()
_MISSING, _ANOTHER, _SHORTER, _LONGER = (
    (np.arange(6, dtype="<f4") + first).tobytes() for first in (100, 200, 300, 400)
)


def _with_bank(bank: bytes) -> bytes:
    return with_contents(PLAIN, lambda header: None, (BANK, bank))


def _with_offsets(offsets: list[int]) -> Callable[[dict[str, Any]], object]:
    def change(header: dict[str, Any]) -> None:
        for entry, offset in zip(header["sections"], offsets, strict=True):
            entry[0] = offset

    return change


def _flipped(data: bytes, section: int) -> bytes:
    start = forge.data_start(data) + forge.parts(data)[1]["sections"][section][0]
    changed = bytearray(data)
    changed[start] ^= 1
    return bytes(changed)


def _padded(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[forge.data_start(data) - 1] = 1
    return bytes(changed)


def _index_is_h(data: bytes) -> bytes:
    def change(content: bytearray) -> None:
        content[1] = 3

    return forge.with_section(data, INDICES, change)
