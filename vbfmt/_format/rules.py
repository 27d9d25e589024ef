"""The rules that an adapter's content must obey.

Each ``broken_…`` function yields an error for every broken rule. A reader raises the first error,
and `verify` lists all. An adapter that breaks a rule cannot be constructed and so cannot be
written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._format import strict_json
from vbfmt._math.admixture import LARGEST_BANK, all_weights, index_dtype, out_of_order, repeats
from vbfmt.errors import ContentError, VbfmtError
from vbfmt.module import Module

LONGEST_NAME = 1024
"""Bytes of UTF-8 in a name."""

_LONGEST_FAULT_LIST = 3
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def raise_first(errors: Iterable[VbfmtError]) -> None:
    """Raise the first error, if there is one."""
    for error in errors:
        raise error


def broken_shape_rules(
    bank: NDArray[Any], indices: NDArray[Any], weights: NDArray[Any], modules: Sequence[Module]
) -> Iterator[ContentError]:
    """Yield the broken rules of the arrays' shapes and dtypes and of the module table."""
    if bank.ndim != 2 or indices.ndim != 2 or weights.ndim != 2:
        yield ContentError(
            "bank, indices and weights must be matrices",
            found=f"{bank.ndim}, {indices.ndim} and {weights.ndim} dimensions",
        )
        return
    h, b = bank.shape
    yield from broken_sizes(h, b, indices.shape[1])
    yield from broken_modules(modules, bank.shape[1])
    expected_rows = sum(module.rows(max(bank.shape[1], 1)) for module in modules)
    expected: dict[str, tuple[NDArray[Any], np.dtype[Any], tuple[int, ...]]] = {
        "bank": (bank, np.dtype("<f4"), bank.shape),
        "indices": (indices, index_dtype(bank.shape[0]), (expected_rows, indices.shape[1])),
        "weights": (weights, np.dtype("<f4"), (expected_rows, indices.shape[1] - 1)),
    }
    for name, (array, dtype, shape) in expected.items():
        if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
            yield ContentError(
                "wrong dtype, shape or order",
                part=name,
                found=_describe(array),
                expected=f"{dtype.name} {list(shape)}",
            )


def broken_sizes(h: int, b: int, k: int) -> Iterator[ContentError]:
    """Yield the broken rules of h, b and k."""
    if not 1 <= h <= LARGEST_BANK:
        yield ContentError(
            "the vector bank's size is out of range",
            part="bank",
            found=f"h = {h}",
            expected=f"1 to {LARGEST_BANK} vectors",
            advice="indices of this format are 16 bits at most",
        )
    if b < 1:
        yield ContentError("the vectors have no elements", part="bank", found=f"b = {b}")
    if not 1 <= k <= h:
        yield ContentError("k is out of range", part="indices", found=k, expected=f"1 to {h} (h)")


def broken_modules(modules: Sequence[Module], b: int) -> Iterator[ContentError]:
    """Yield the broken rules of the module table."""
    if not modules:
        yield ContentError("the adapter has no modules", part="module table")
    yield from broken_names([module.name for module in modules], "module")
    for module in modules:
        if module.rank < 1:
            yield ContentError(
                "rank is out of range",
                part=f"module {module.name}",
                found=module.rank,
                expected="≥ 1",
            )
        for what in ("in_features", "out_features"):
            features = getattr(module, what)
            if features < 1 or (b > 0 and features % b):
                yield ContentError(
                    f"{what} is not a multiple of the vector length",
                    part=f"module {module.name}",
                    found=features,
                    expected=f"a positive multiple of b = {b}",
                )


def broken_names(names: Sequence[str], kind: str) -> Iterator[ContentError]:
    """Yield the broken rules of names, which must be distinct and ascend by UTF-8 bytes."""
    previous = b""
    for position, name in enumerate(names):
        fault = _fault_of_name(name)
        if fault:
            yield ContentError(f"{kind} name {fault}", part=f"{kind} {position}", found=repr(name))
            return
        encoded = name.encode()
        if encoded <= previous:
            again = "appears twice" if encoded == previous else "is not sorted by its bytes"
            yield ContentError(f"{kind} name {again}", part=f"{kind} {position}", found=repr(name))
        previous = encoded


def broken_texts(
    base_model: str | None,
    base_revision: str | None,
    config: str | None,
    metadata: Mapping[str, str],
) -> Iterator[ContentError]:
    """Yield the broken rules of the base model's name, the config and the metadata."""
    texts: Mapping[str, str | None] = {
        "base model": base_model,
        "base revision": base_revision,
        "config": config,
        **{f"metadata {key!r}": value for key, value in metadata.items()},
    }
    for part, text in texts.items():
        if text is not None and not _is_utf8(text):
            yield ContentError("text is not valid Unicode", part=part, found=repr(text[:40]))
    yield from broken_names(list(metadata), "metadata")
    if config is not None and not strict_json.is_object(config):
        yield ContentError("the source's config is not a JSON object", part="config")


def broken_value_rules(
    bank: NDArray[np.float32], indices: NDArray[Any], weights: NDArray[np.float32]
) -> Iterator[ContentError]:
    """Yield the broken rules of the arrays' values, with the first rows that break each rule."""
    yield from broken_bank_values(bank)
    yield from broken_index_values(indices, len(bank))
    yield from broken_weight_values(indices, weights)


def broken_bank_values(bank: NDArray[np.float32]) -> Iterator[ContentError]:
    """Yield the broken rule of the bank: its values must be finite."""
    bad = _BadRows.of(~np.isfinite(bank).all(axis=1))
    if bad.count:
        yield ContentError("values are not finite", part="bank", found=bad.named("vector"))


def broken_index_values(indices: NDArray[Any], h: int) -> Iterator[ContentError]:
    """Yield the broken rules of indices: they must be below h, and distinct within a row."""
    bad = _BadRows.of((indices >= h).any(axis=1))
    if bad.count:
        yield ContentError(
            "index past the end of the bank",
            part="indices",
            found=f"{indices[bad.first[0]].max()} in {bad.named('row')}",
            expected=f"below {h} (h)",
        )
    bad = _BadRows.of(repeats(indices))
    if bad.count:
        yield ContentError("duplicate index in one row", part="indices", found=bad.named("row"))


def broken_weight_values(
    indices: NDArray[Any], weights: NDArray[np.float32]
) -> Iterator[ContentError]:
    """Yield the broken rules of weights: they must be in [0, 1], not −0, and in canonical order."""
    if not weights.shape[1]:
        return
    outside = ~((weights >= 0) & (weights <= 1)) | np.signbit(weights)
    bad = _BadRows.of(outside.any(axis=1))
    if bad.count:
        yield ContentError(
            "weight outside its range",
            part="weights",
            found=f"{weights[bad.first[0]][outside[bad.first[0]]][0]} in {bad.named('row')}",
            expected="0 to 1",
        )
        return
    bad = _BadRows.of(out_of_order(indices, all_weights(weights)))
    if bad.count:
        yield ContentError(
            "rows are not canonical",
            part="weights",
            found=bad.named("row"),
            expected="weights descending, the largest left out, equal ones by ascending index",
        )


def _fault_of_name(name: str) -> str | None:
    if not name:
        return "is empty"
    if not _is_utf8(name):
        return "is not valid Unicode"
    if len(name.encode()) > LONGEST_NAME:
        return f"is longer than {LONGEST_NAME} bytes"
    if _CONTROL.search(name):
        return "has control characters"
    return None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _describe(array: NDArray[Any]) -> str:
    order = "" if array.flags.c_contiguous else ", not contiguous"
    return f"{array.dtype.name} {list(array.shape)}{order}"


@dataclass(frozen=True)
class _BadRows:
    """Rows that break a rule.

    Attributes:
        first: the indices of the first three bad rows.
        count: number of all bad rows. (A list of all would need eight times the memory of one-byte
            indices.)
    """

    first: list[int]
    count: int

    @classmethod
    def of(cls, bad: Any) -> _BadRows:
        """Return the rows for which `bad`, (N,) bool, is true."""
        first: list[int] = []
        start = 0
        while len(first) < _LONGEST_FAULT_LIST and bad[start:].any():
            first.append(start + int(bad[start:].argmax()))
            start = first[-1] + 1
        return cls(first, int(np.count_nonzero(bad)))

    def named(self, what: str) -> str:
        """Return the rows as text: ``row 1, 2, 3 and 7 more``."""
        rest = self.count - len(self.first)
        shown = ", ".join(map(str, self.first))
        return f"{what} {shown}" + (f" and {rest} more" if rest > 0 else "")
