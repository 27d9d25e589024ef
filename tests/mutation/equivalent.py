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
