"""Report the mutants of `make mutation`: ``python -m tests.mutation [FOLDER]``.

FOLDER is where mutmut ran (build/mutation). The report has the score of each module (the share of
non-equivalent mutants that a test detected), then every survivor that `equivalent` does not
explain, and every explanation without a survivor. The exit status is 1 if there is such an
explanation, if the score of a module is below its limit, if a configured module has no mutants, or
if no test was run on some mutants.
"""

from __future__ import annotations

import ast
import collections
import difflib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import tomllib

from tests.mutation.equivalent import reason, unused

LOWEST = 0.99
"""The share of mutants that tests must detect in each module, as docs/fidelity.md states."""

_SURVIVED = 0
_TIMED_OUT = {36, -24, 24, 152, 255}
_NOTICED = {1, 3, -11, -9} | _TIMED_OUT
"""Exit codes of detected mutants (mutmut/stats.py): a test failed, pytest failed, timeout, killed.
Not 2, 5, 33, 34 and None: interrupted, no tests, skipped, unchecked. An equivalent mutant that
exceeds the time limit does not count as detected, because the machine was busy."""


class Mutant(NamedTuple):
    """One change of one function.

    Attributes:
        name: mutmut's name of it.
        change: the removed and added lines of the function, as `ast.unparse` writes it: "- …" and
            "+ …".
    """

    name: str
    change: str


class Score(NamedTuple):
    """Counts of a module's mutants, and the survivors."""

    mutants: int
    killed: int
    explained: int
    survived: int
    undecided: int
    left: list[Mutant]
    same: list[Mutant]

    @property
    def share(self) -> float:
        """Return the share of non-equivalent mutants that were detected."""
        return self.killed / (self.killed + self.survived or 1)


def with_changes(file: Path, names: Iterable[str]) -> Iterator[Mutant]:
    """Yield the mutants of these names, with their changes."""
    functions = {
        node.name: node
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    for name in names:
        inner = name.rpartition(".")[2]
        original = _lines(functions[inner.rpartition("__mutmut_")[0] + "__mutmut_orig"])
        mutated = _lines(functions[inner])
        changed = [
            f"{line[0]} {line[1:].strip()}"
            for line in difflib.unified_diff(original, mutated, n=0, lineterm="")
            if line[0] in "+-" and line[:3] not in ("+++", "---")
        ]
        yield Mutant(name, "\n".join(changed))


def _lines(function: ast.FunctionDef) -> list[str]:
    return ast.unparse(function).splitlines()[1:]


def main() -> int:
    """See the module's docstring."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/mutation")
    failed = False
    real: list[Mutant] = []
    explained: list[Mutant] = []
    print(*(f"{name:>11}" for name in ("module", *Score._fields[:-2], "score")))
    for module in wanted(folder):
        score = scored(folder, module)
        failed = failed or score.share < LOWEST or score.undecided > 0
        real += score.left
        explained += score.same
        *counts, _, _ = score
        cells = (Path(module).stem, *counts, f"{score.share:.1%}")
        print(*(f"{cell:>11}" for cell in cells))
    for change, names in _by_change(real).items():
        print(f"\n{', '.join(names)}\n{change}")
    stale = unused(explained)
    for each in stale:
        print(f"\nexplains no survivor: {each.function} {each.was!r}")
    return int(failed or bool(stale))


def scored(folder: Path, module: str) -> Score:
    """Return the counts of a module, all 0 if mutmut wrote nothing about it."""
    meta = folder / "mutants" / f"{module}.meta"
    if not meta.is_file():
        return Score(0, 0, 0, 0, 0, [], [])
    results = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
    doubtful = [name for name, code in results.items() if code in {_SURVIVED} | _TIMED_OUT]
    left, same = [], []
    for mutant in with_changes(meta.with_suffix(""), doubtful):
        if reason(mutant.name, mutant.change) is not None:
            same.append(mutant)
        elif results[mutant.name] == _SURVIVED:
            left.append(mutant)
    explained = {mutant.name for mutant in same}
    killed = sum(code in _NOTICED for name, code in results.items() if name not in explained)
    return Score(
        mutants=len(results),
        killed=killed,
        explained=len(same),
        survived=len(left),
        undecided=len(results) - killed - len(same) - len(left),
        left=left,
        same=same,
    )


def wanted(folder: Path) -> list[str]:
    """Return the modules that FOLDER's configuration lists for mutation."""
    text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    modules: list[str] = tomllib.loads(text)["tool"]["mutmut"]["only_mutate"]
    if not modules:
        raise SystemExit("the configuration lists no modules")
    return modules


def _by_change(mutants: list[Mutant]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = collections.defaultdict(list)
    for mutant in mutants:
        found[mutant.change].append(mutant.name)
    return found


if __name__ == "__main__":
    sys.exit(main())
