"""What the mutants of `make mutation` came to: ``python -m tests.mutation [FOLDER]``.

FOLDER is where mutmut ran (build/mutation). Prints the score of each module (of those that differ
from the original, the share that was noticed), then every survivor that `equivalent` has no
explanation for. 1 if the score of any module is below `LOWEST`.
"""

from __future__ import annotations

import ast
import collections
import difflib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.mutation.equivalent import reason

LOWEST = 0.9
_SURVIVED, _UNCHECKED = 0, None


class Mutant(NamedTuple):
    """One change of one function.

    Attributes:
        name: mutmut's own.
        change: the lines taken out and put in, as unparsed: "- …" and "+ …".
    """

    name: str
    change: str


def survivors(file: Path, results: dict[str, int | None]) -> Iterator[Mutant]:
    """Those that no test noticed, with what they change."""
    functions = {
        node.name: node
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    for name, code in results.items():
        if code != _SURVIVED:
            continue
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
    """See the module's own text."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/mutation")
    below = False
    real: list[Mutant] = []
    print(
        f"{'module':<12} {'mutants':>8} {'killed':>8} "
        f"{'explained':>10} {'survived':>9} {'score':>7}"
    )
    for meta in sorted(folder.glob("mutants/vbfmt/*.py.meta")):
        results = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
        checked = [code for code in results.values() if code is not _UNCHECKED]
        if not checked:
            continue
        left = list(survivors(meta.with_suffix(""), results))
        unexplained = [mutant for mutant in left if reason(mutant.name, mutant.change) is None]
        killed = len(checked) - len(left)
        score = killed / (killed + len(unexplained) or 1)
        below = below or score < LOWEST
        real += unexplained
        print(
            f"{meta.name.removesuffix('.py.meta'):<12} {len(checked):>8} {killed:>8} "
            f"{len(left) - len(unexplained):>10} {len(unexplained):>9} {score:>7.1%}"
        )
    for change, names in _by_change(real).items():
        print(f"\n{', '.join(names)}\n{change}")
    return int(below)


def _by_change(mutants: list[Mutant]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = collections.defaultdict(list)
    for mutant in mutants:
        found[mutant.change].append(mutant.name)
    return found


if __name__ == "__main__":
    sys.exit(main())
