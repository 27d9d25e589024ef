"""Encode and decode the header: canonical msgpack and a dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from vbfmt._format import canonical
from vbfmt._format.canonical import Document
from vbfmt._format.container import Section
from vbfmt._format.rules import broken_modules, broken_names, broken_sizes, raise_first
from vbfmt.errors import ContentError, FeatureError, HeaderError
from vbfmt.module import Module
from vbfmt.tensors import BITS, WHOLE_BYTES, byte_length

EXTERNAL_BANK = "external_bank"
"""The feature of files whose bank is in a separate file (section 12)."""

KNOWN_FEATURES = frozenset({EXTERNAL_BANK})
"""Required features that this reader implements."""

KEYS = (
    "required_features",
    "optional_features",
    "h",
    "b",
    "k",
    "modules",
    "tensors",
    "sections",
    "base_model",
    "config",
    "metadata",
)
"""The keys of version 1.0, in order."""

TRIPLET = ("bank", "indices", "weights")


@dataclass(frozen=True)
class Header:
    """The content of a header.

    Attributes:
        h: number of vectors in the bank.
        b: length of a vector, in elements.
        k: number of vectors that a sub-vector selects.
        modules: the module table.
        tensors: (name, dtype, shape) of the other tensors.
        sections: the sections of bank, indices and weights, and then of the other tensors. The
            bank's section is `external` in a file with the feature `EXTERNAL_BANK`.
        base_model, base_revision, config, metadata: as in `Adapter`.
        optional_features: names that the file declares, known or not.
    """

    h: int
    b: int
    k: int
    modules: tuple[Module, ...]
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]
    sections: tuple[Section, ...]
    base_model: str | None = None
    base_revision: str | None = None
    config: str | None = None
    metadata: Mapping[str, str] | None = None
    optional_features: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """N, the number of sub-vectors."""
        return sum(module.rows(self.b) for module in self.modules)

    @property
    def section_names(self) -> list[str]:
        """The names of the sections, for messages."""
        return [*TRIPLET, *(f"tensor {name}" for name, _, _ in self.tensors)]

    def lengths(self) -> list[int | None]:
        """Return each section's length in bytes, or None for a tensor with an impossible shape."""
        index_bytes = 1 if self.h <= 256 else 2
        triplet = [
            4 * self.h * self.b,
            index_bytes * self.rows * self.k,
            4 * self.rows * (self.k - 1),
        ]
        return [*triplet, *(byte_length(dtype, shape) for _, dtype, shape in self.tensors)]


def encode(header: Header) -> bytes:
    """Return the header in canonical msgpack."""
    values: dict[str, Any] = {
        "required_features": [],
        "optional_features": list(header.optional_features),
        "h": header.h,
        "b": header.b,
        "k": header.k,
        "modules": [
            [m.name, m.in_features, m.out_features, m.rank, m.fan_in_fan_out]
            for m in header.modules
        ],
        "tensors": [[name, dtype, list(shape)] for name, dtype, shape in header.tensors],
        "sections": [[s.offset, s.length, s.sha256] for s in header.sections],
        "base_model": [header.base_model, header.base_revision],
        "config": header.config,
        "metadata": dict(header.metadata or {}),
    }
    return canonical.pack({key: values[key] for key in KEYS})


def decode(data: bytes, minor: int) -> Header:
    """Decode a header and check its rules.

    Args:
        minor: the file's minor version. If it is above this reader's, unknown keys are ignored.

    Raises:
        HeaderError: `data` is not canonical msgpack, or a key or value is wrong.
        FeatureError: the file requires a feature that this reader does not know.
        ContentError: sizes, names or the module table break a rule.
    """
    document = canonical.read(data)
    _require_features(document)
    _require_keys(document, minor)
    raw = {key: document.value(position) for position, key in enumerate(KEYS)}
    header = Header(
        h=_uint(raw["h"], "h"),
        b=_uint(raw["b"], "b"),
        k=_uint(raw["k"], "k"),
        modules=tuple(_module(row) for row in _list(raw["modules"], "modules")),
        tensors=tuple(_tensor(row) for row in _list(raw["tensors"], "tensors")),
        sections=_sections(raw),
        base_model=_base(raw["base_model"])[0],
        base_revision=_base(raw["base_model"])[1],
        config=_optional_text(raw["config"], "config"),
        metadata=_texts(raw["metadata"]),
        optional_features=tuple(_names(raw["optional_features"], "optional_features")),
    )
    raise_first(broken_sizes(header.h, header.b, header.k))
    raise_first(broken_modules(header.modules, header.b))
    raise_first(broken_names([name for name, _, _ in header.tensors], "other tensor"))
    _require_lengths(header)
    return header


def _require_features(document: Document) -> None:
    """Check the required features first: one may change the meaning of everything else."""
    wanted = "required_features"
    position = next((n for n, key in enumerate(document.keys()) if key == wanted), None)
    if position is None:
        raise HeaderError("missing key", part="header", expected=wanted)
    for feature in _names(document.value(position), wanted):
        if feature not in KNOWN_FEATURES:
            raise FeatureError(
                "the file needs an unknown feature",
                part="header",
                found=repr(feature),
                advice="update vbfmt",
            )


def _require_keys(document: Document, minor: int) -> None:
    """Check that known keys come first, in order, followed by keys of features or later
    versions."""
    keys = document.keys()
    for expected in KEYS:
        key = next(keys, None)
        if key != expected:
            raise HeaderError(
                "unexpected key or wrong order of keys",
                part="header",
                found="the end" if key is None else repr(key),
                expected=repr(expected),
            )
    features = document.value(KEYS.index("optional_features"))
    declared = set(_names(features, "optional_features")) if minor == 0 else None
    previous = ""
    for key in keys:  # no duplicates; code points and UTF-8 bytes have the same order
        if key < previous:
            raise HeaderError("further keys are not in order", part="header", found=repr(key))
        if declared is not None and key not in declared:
            raise HeaderError("unknown key", part="header", found=repr(key))
        previous = key


def _require_lengths(header: Header) -> None:
    expected = header.lengths()
    if len(header.sections) != len(expected):
        raise HeaderError(
            "wrong number of sections",
            part="header",
            found=len(header.sections),
            expected=len(expected),
        )
    for name, section, length in zip(header.section_names, header.sections, expected, strict=True):
        if section.length != length:
            raise HeaderError(
                "section of the wrong length",
                part=name,
                found=f"{section.length} bytes",
                expected=WHOLE_BYTES if length is None else f"{length} bytes",
            )


T = TypeVar("T")


def _typed(value: object, kind: type[T], what: str) -> T:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise HeaderError(
            "wrong type", part=f"header, {what}", found=type(value).__name__, expected=kind.__name__
        )
    return value


def _uint(value: object, what: str) -> int:
    return _typed(value, int, what)


def _list(value: object, what: str, length: int | None = None) -> list[Any]:
    items: list[Any] = _typed(value, list, what)
    if length is not None and len(items) != length:
        raise HeaderError(
            "wrong number of fields", part=f"header, {what}", found=len(items), expected=length
        )
    return items


def _optional_text(value: object, what: str) -> str | None:
    return None if value is None else _typed(value, str, what)


def _names(value: object, what: str) -> list[str]:
    names = [_typed(item, str, what) for item in _list(value, what)]
    try:
        raise_first(broken_names(names, what))
    except ContentError as error:
        raise HeaderError(error.what, part=f"header, {what}", found=error.found) from None
    return names


_OF_A_MODULE = [str, int, int, int, bool]


def _module(row: object) -> Module:
    fields = _list(row, "modules", 5)
    if [*map(type, fields)] != _OF_A_MODULE:
        for value, kind in zip(fields, _OF_A_MODULE, strict=True):
            _typed(value, kind, "modules")
    return Module(*fields)


def _tensor(row: object) -> tuple[str, str, tuple[int, ...]]:
    name, dtype, shape = _list(row, "tensors", 3)
    if _typed(dtype, str, "tensors") not in BITS:
        raise HeaderError(
            "unknown dtype",
            part="header, tensors",
            found=repr(dtype),
            expected="a dtype of safetensors",
        )
    sizes = tuple(_uint(size, "tensors") for size in _list(shape, "tensors"))
    return _typed(name, str, "tensors"), dtype, sizes


def _sections(raw: Mapping[str, Any]) -> tuple[Section, ...]:
    sections = [_section(row) for row in _list(raw["sections"], "sections")]
    if sections and EXTERNAL_BANK in raw["required_features"]:
        sections[0] = replace(sections[0], external=True)
    return tuple(sections)


def _section(row: object) -> Section:
    offset, length, sha256 = _list(row, "sections", 3)
    digest = _typed(sha256, bytes, "sections")
    if len(digest) != 32:
        raise HeaderError(
            "wrong length of a digest", part="header, sections", found=len(digest), expected=32
        )
    return Section(_uint(offset, "sections"), _uint(length, "sections"), digest)


def _base(value: object) -> tuple[str | None, str | None]:
    name, revision = _list(value, "base_model", 2)
    return _optional_text(name, "base_model"), _optional_text(revision, "base_model")


def _texts(value: object) -> dict[str, str]:
    texts: dict[Any, Any] = _typed(value, dict, "metadata")
    return {
        _typed(key, str, "metadata"): _typed(text, str, "metadata") for key, text in texts.items()
    }
