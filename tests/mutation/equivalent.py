"""Mutants that no test can notice, because what they do is the same. Read one by one."""

from __future__ import annotations

import re
from typing import NamedTuple


class Equivalent(NamedTuple):
    """Mutants, and why they change nothing.

    Attributes:
        function: pattern of mutmut's name of the function.
        change: pattern found in the lines taken out and put in.
        why: in words.
    """

    function: str
    change: str
    why: str


EQUIVALENT = (
    Equivalent(
        "canonical.x_(un)?pack",
        "use_bin_type|raw=False|strict_map_key=True",
        "defaults of msgpack 1.0 and later, spelled out",
    ),
    Equivalent(
        "canonical.x__require_sound",
        "'big'",
        "the default of `int.from_bytes` from Python 3.11 on; on 3.10 the mutant fails",
    ),
    Equivalent(
        "canonical.x__require_sound",
        r"position - items",
        "a count beyond the bytes is refused when they run out; this only saves the walk there",
    ),
    Equivalent("container.x_describe", "strict=True", "all three lists are made from `contents`"),
    Equivalent(
        "header.x__require_lengths",
        "strict=True",
        "there are as many names as lengths, and as many sections was checked just before",
    ),
    Equivalent("container.x_read_preamble", "major >= MAJOR", "they differ: that was asked before"),
    Equivalent("", r"strict=False.*(strict=None|zip\([^=]*\))", "so `zip` does unasked"),
    Equivalent(
        "admixture|selection",
        r"(sort|partition|take_along_axis)\(.*(axis=\+1|(?<!axis=1)\)(\[:, h - k, None\])?$)",
        "the last axis, which is what these take by themselves, is the second of two",
    ),
    Equivalent(
        "selection.x__(select|fill)",
        r"\+ (dtype = np.dtype|space = (None|scratch.get\(None)|rows = block\[few\].astype\(None)",
        "float64 holds every float32, and scratch space may be made anew: only slower",
    ),
    Equivalent(
        "selection.x__select",
        r"\+ space = scratch\[dtype.char\] = np.empty|copyto\(values, block\[here\]\)$",
        "float64 scratch holds float32 as well; no copy narrows",
    ),
    Equivalent(
        "selection.x__select",
        r"found = \(_by_passes if",
        "both ways give the same, as a test shows; one is faster for small k",
    ),
    Equivalent(
        "selection.x_select_top_k",
        r"\+ (starts = .*np.cumsum|logits = np.empty)|slice\(start \+ first, None\)",
        "what numpy takes unasked; rows past the piece's own are not written",
    ),
    Equivalent("selection.x__fill", r"argsort\(-rows, kind", "by the last axis, the second of two"),
    Equivalent("admixture|selection", r"order='c'|kind='STABLE'", "numpy takes capitals or none"),
    Equivalent(
        "selection.x__by_partition",
        r"\[nan\] = None",
        "to numpy, None is False among booleans and NaN among floats",
    ),
    Equivalent(
        "selection.x__by_passes",
        r"np.empty\(",
        "kept as float64 on the way to the caller's own arrays: both hold such values exactly",
    ),
    Equivalent(
        "admixture.x__sum_in_order", r"np.zeros\(", "float64 is what numpy makes of zeros unasked"
    ),
    Equivalent("admixture.x__exp_of_non_positive", "-801", "its exp is 0 as well"),
    Equivalent(
        "admixture.x_canonical_rows",
        r"\+ weights = np.array\(weights, (dtype=None, )?order='C'\)",
        "callers give float64, as they are told to",
    ),
    Equivalent("admixture.x_repeats", r"np.sort\(indices\)", "the last axis is the second of two"),
    Equivalent("admixture.x_compose", r"astype\(None\)", "numpy's name for float64"),
    Equivalent(
        "admixture.x_compose|selection.x_(select_top_k|_select)_",
        r"rows = max\(|alone=|range\(0, n\)|np.empty\(\(3, ",
        "how much is done at a time and on how many cores: time and memory, not the result",
    ),
    Equivalent("rules.x_broken_modules", "b > 1", "1 divides everything"),
    Equivalent(
        "header.x__texts",
        r"_typed\(key, str, 'metadata'\).*_typed\(key, str, (?!'metadata')",
        "`canonical.unpack` has refused keys that are no strings",
    ),
)


def reason(name: str, change: str) -> str | None:
    """Why that mutant changes nothing, if it does not."""
    for known in EQUIVALENT:
        if re.search(known.function, name) and re.search(known.change, change, re.DOTALL):
            return known.why
    return None
