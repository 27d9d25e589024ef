"""Mutants that no test can detect because they behave the same. Each was reviewed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Equivalent(NamedTuple):
    """Mutants, and why they change nothing.

    Attributes:
        function: pattern of mutmut's name of the function.
        was: the text that is replaced, in one line.
        now: texts that may replace it.
        why: explanation.
    """

    function: str
    was: str
    now: tuple[str, ...]
    why: str


_LAST_AXIS = "the default is the last axis, which is the second of two"
_AS_MUCH_AT_ONCE = "the sizes of blocks and the number of cores change the time, not the result"
_HOLDS_BOTH = (
    "float64 represents every float32 exactly, and the caller's arrays set the final dtype"
)

EQUIVALENT = (
    Equivalent(
        "canonical.x_pack__", ", use_bin_type=True", ("",), "the default from msgpack 1.0 on"
    ),
    Equivalent(
        "canonical.x__number__",
        ", 'big')",
        (")",),
        "the default of `int.from_bytes` from Python 3.11 on; on 3.10 the mutant fails",
    ),
    Equivalent(
        "canonical.x__value__",
        "stop + items",
        ("stop - items",),
        "a count beyond the bytes is refused when they run out; the check only saves time",
    ),
    Equivalent(
        "canonical.x_read__",
        "array('I')",
        ("array('i')",),
        "offsets and counts are at most 2²⁴, the longest header",
    ),
    Equivalent(
        "canonical.x_read__",
        "left[-1] % 2",
        ("left[+1] % 2",),
        "the list has two items, so the second is the last",
    ),
    Equivalent(
        "external_bank.x_thin_front__",
        ", key=str.encode",
        ("", ", key=None"),
        "the order of code points is that of UTF-8's bytes",
    ),
    Equivalent(
        "external_bank.*laid_out__",
        ", strict=True",
        ("", ", strict=None", ", strict=False"),
        "each section has an offset",
    ),
    Equivalent(
        "container.x_sections_of__",
        ", strict=True",
        ("", ", strict=None", ", strict=False"),
        "all three lists are made from `contents`",
    ),
    Equivalent(
        "header.x__require_lengths__",
        ", strict=True",
        ("", ", strict=None", ", strict=False"),
        "there are as many names as lengths, and the number of sections was checked just before",
    ),
    Equivalent(
        "container.x_read_preamble__",
        "major > MAJOR",
        ("major >= MAJOR",),
        "the two are not equal, which was checked before",
    ),
    Equivalent("", ", strict=False", ("", ", strict=None"), "the default of `zip`"),
    Equivalent("admixture|selection", ", axis=1", ("",), _LAST_AXIS),
    Equivalent("admixture|selection", ", axis=-1", ("", ", axis=+1"), _LAST_AXIS),
    Equivalent("admixture|selection", "order='C'", ("order='c'",), "numpy accepts both"),
    Equivalent("selection", "kind='stable'", ("kind='STABLE'",), "numpy accepts both"),
    Equivalent(
        "selection.x__select__",
        "np.dtype(np.float64 if block.dtype.itemsize > 4 else np.float32)",
        (
            "np.dtype(None)",
            "np.dtype(np.float64 if block.dtype.itemsize > 4 or True else np.float32)",
            "np.dtype(np.float64 if block.dtype.itemsize >= 4 else np.float32)",
            "np.dtype(np.float64 if block.dtype.itemsize > 5 else np.float32)",
        ),
        "float64 represents every float32, None is float64, and floats have 2, 4 or 8 bytes",
    ),
    Equivalent(
        "selection.x__select__",
        "space = scratch.get(dtype.char)",
        ("space = None", "space = scratch.get(None)"),
        "scratch space may be allocated again: only slower",
    ),
    Equivalent(
        "selection.x__select__", ", dtype=dtype", ("", ", dtype=None"), "float64 represents float32"
    ),
    Equivalent(
        "selection.x__select__", ", casting='unsafe'", ("",), "no copy is to a narrower dtype"
    ),
    Equivalent(
        "selection.x__select__",
        "_by_passes if k <= _PASSES_AT_MOST else",
        (
            "_by_passes if k <= _PASSES_AT_MOST and False else",
            "_by_passes if k <= _PASSES_AT_MOST or True else",
            "_by_passes if k < _PASSES_AT_MOST else",
        ),
        "both ways give the same, as a test shows; one is faster for small k",
    ),
    Equivalent("selection.x__select__", "rows = max(1,", ("rows = max(2,",), _AS_MUCH_AT_ONCE),
    Equivalent(
        "selection.x_select_top_k__",
        ", alone=total < _WORTH_THREADS",
        ("", ", alone=None", ", alone=total <= _WORTH_THREADS"),
        _AS_MUCH_AT_ONCE,
    ),
    Equivalent(
        "selection.x_select_top_k__",
        "np.cumsum(counts, dtype=np.int64)",
        ("np.cumsum(counts)", "np.cumsum(counts, dtype=None)"),
        "numpy's default",
    ),
    Equivalent(
        "selection.x_select_top_k__|admixture.x__sum_in_order__",
        ", dtype=np.float64",
        ("", ", dtype=None"),
        "numpy's default",
    ),
    Equivalent(
        "selection.x_select_top_k__",
        "slice(start + first, start + first + len(rows))",
        ("slice(start + first, None)",),
        "rows after those of the piece are not written",
    ),
    Equivalent(
        "selection.x__fill_rows_with_too_few__",
        "astype(np.float64)",
        ("astype(None)",),
        "numpy's name for float64",
    ),
    Equivalent(
        "selection.x__by_partition__",
        "[nan] = False",
        ("[nan] = None",),
        "numpy converts None to False in an array of booleans",
    ),
    Equivalent(
        "selection.x__by_partition__",
        "[nan] = np.nan",
        ("[nan] = None",),
        "numpy converts None to NaN in an array of floats",
    ),
    Equivalent(
        "selection.x__by_passes__", ", dtype=values.dtype", ("", ", dtype=None"), _HOLDS_BOTH
    ),
    Equivalent(
        "selection.x__by_passes__",
        ", dtype=np.intp",
        ("", ", dtype=None"),
        "float64 represents every index exactly, and the caller's array sets the final dtype",
    ),
    Equivalent("admixture.x__exp_of_non_positive__", "-800.0", ("-801.0",), "its exp is 0 as well"),
    Equivalent(
        "admixture.x_canonical_rows__",
        "dtype=np.float64, ",
        ("", "dtype=None, "),
        "callers pass float64, as the docstring requires",
    ),
    Equivalent(
        "composition.x__compose__",
        ", strict=True",
        ("", ", strict=None", ", strict=False"),
        "the values have the shape of the array that they are written to",
    ),
    Equivalent(
        "composition.x__compose__", "astype(np.float64)", ("astype(None)",), "numpy's name for it"
    ),
    Equivalent(
        "composition.x_(subvectors|factors)__",
        "reshape(1, -1)",
        ("reshape(1, -2)",),
        "numpy accepts any negative number as the remaining size",
    ),
    Equivalent(
        "composition.x__blocks__",
        "tiles > most",
        ("tiles >= most",),
        "a component of exactly that size becomes one block in both cases",
    ),
    Equivalent(
        "composition.x__blocks__",
        "range(0, components, step)",
        ("range(0, components)",),
        "the same values are written several times: only slower",
    ),
    Equivalent(
        "composition.x__blocks__",
        "range(0, tiles, most)",
        ("range(0, tiles)",),
        "the same values are written several times: only slower",
    ),
    Equivalent(
        "composition.x_factors__",
        "module.rank > 1",
        ("module.rank >= 1",),
        "the rows of a factor of one component are in order already: only slower",
    ),
    Equivalent("composition.x__rows_per_block__", "max(1,", ("max(2,",), _AS_MUCH_AT_ONCE),
    Equivalent("rules.x_broken_modules__", "b > 0", ("b > 1",), "1 divides everything"),
    Equivalent(
        "header.x__module__",
        ", strict=True",
        ("", ", strict=None", ", strict=False"),
        "`_list` has checked that there are five fields",
    ),
    Equivalent(
        "header.x__texts__",
        "_typed(key, str, 'metadata')",
        tuple(f"_typed(key, str, {what})" for what in ("None", "'XXmetadataXX'", "'METADATA'")),
        "`canonical.read` has already refused keys that are not strings",
    ),
)


def unused(mutants: Iterable[tuple[str, str]]) -> list[Equivalent]:
    """Return the explanations that match none of these mutants: (name, change) as in `reason`."""
    changes = list(mutants)
    return [known for known in EQUIVALENT if not any(_fits(known, *change) for change in changes)]


def reason(name: str, change: str) -> str | None:
    """Return why a mutant changes nothing, or None if there is no explanation.

    Args:
        name: mutmut's name.
        change: the removed line and the added line: "- …" and "+ …". A change of more lines has no
            explanation.
    """
    return next((known.why for known in EQUIVALENT if _fits(known, name, change)), None)


def _fits(known: Equivalent, name: str, change: str) -> bool:
    old, _, new = change.partition("\n")
    if not (old.startswith("- ") and new.startswith("+ ")) or "\n" in new:
        return False
    return bool(re.search(known.function, name)) and new[2:] in _replaced(old[2:], known)


def _replaced(line: str, known: Equivalent) -> set[str]:
    """Return the lines that result from one replacement at one position."""
    places = [match.start() for match in re.finditer(re.escape(known.was), line)]
    return {
        line[:place] + now + line[place + len(known.was) :] for place in places for now in known.now
    }
