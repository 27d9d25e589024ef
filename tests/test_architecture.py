"""The architecture: which packages may import which."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = [
    path
    for folder in ("vbfmt", "converters")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != ROOT / "vbfmt" / "converters.py"
]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(("vbfmt", *parts) if parts[0] == "converters" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(path: Path, *, types: bool, functions: bool = True) -> set[str]:
    """Return the library's modules that a file imports.

    Args:
        types: whether to include imports for type checkers only.
        functions: whether to include imports inside functions.
    """
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not types:
            return
        if isinstance(node, ast.FunctionDef) and not functions:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found & set(MODULES)


IMPORTS = {name: imports(path, types=False) for name, path in MODULES.items()}
WITH_TYPES = {name: imports(path, types=True) for name, path in MODULES.items()}

CONVENIENCE = {
    ("vbfmt.adapter", "vbfmt.packed"),
    ("vbfmt.packed", "vbfmt.converters.sources"),
}
"""Imports against the allowed direction, each inside a function: `Adapter.save`, `load` and
`digest` call the functions of `vbfmt.packed`, and `vbfmt.load` downloads ``hf://…`` like the
commands."""


def under(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of one import cycle, or [] if there is none."""
    done: set[str] = set()
    for start in graph:
        stack = [(start, iter(sorted(graph[start])))]
        path = [start]
        while stack:
            _, rest = stack[-1]
            step = next(rest, None)
            if step is None:
                stack.pop()
                done.add(path.pop())
            elif step in path:
                return [*path[path.index(step) :], step]
            elif step not in done:
                stack.append((step, iter(sorted(graph[step]))))
                path.append(step)
    return []


def test_an_import_cycle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_sources_are_found():
    assert len(MODULES) > 100
    assert "vbfmt._format.container" in IMPORTS["vbfmt.packed"]


def test_there_are_no_import_cycles():
    """This includes imports for types. The public names in ``__init__`` are lazy."""
    graph = {
        name: {target for target in targets if (name, target) not in CONVENIENCE}
        for name, targets in WITH_TYPES.items()
        if name != "vbfmt"
    }
    assert circle({name: targets & set(graph) for name, targets in graph.items()}) == []


def test_the_exceptions_are_needed():
    assert all(target in IMPORTS[name] for name, target in CONVENIENCE)


def test_the_exceptions_are_imported_only_in_functions():
    for name, target in CONVENIENCE:
        assert target not in imports(MODULES[name], types=False, functions=False)


def test_the_library_does_not_import_converters():
    """Except the command line, and one listed exception."""
    wrong = {
        (name, target)
        for name, targets in IMPORTS.items()
        for target in targets
        if under(target, "vbfmt.converters")
        and not under(name, "vbfmt.converters")
        and not under(name, "vbfmt.cli")
    }
    assert wrong - CONVENIENCE == set()


def room_of(name: str) -> str:
    """Return the package of a module, for example ``vbfmt.torch``, or the module itself if it is in
    none."""
    parts = name.split(".")
    depth = 3 if parts[:2] == ["vbfmt", "converters"] else 2
    return ".".join(parts[:depth])


@pytest.mark.parametrize(
    ("room", "never"),
    [
        ("vbfmt._math", ("vbfmt._files", "vbfmt.packed", "vbfmt.adapter")),
        ("vbfmt._format", ("vbfmt._files", "vbfmt.packed", "vbfmt.adapter")),
        ("vbfmt.analysis", ("vbfmt.cli", "vbfmt.converters", "vbfmt.plot", "vbfmt.torch")),
        ("vbfmt.plot", ("vbfmt.cli", "vbfmt.converters", "vbfmt.torch")),
        ("vbfmt.torch", ("vbfmt.cli", "vbfmt.converters", "vbfmt.plot")),
        ("vbfmt.converters", ("vbfmt.cli", "vbfmt.plot", "vbfmt.torch")),
    ],
)
def test_packages_import_in_one_direction(room, never):
    wrong = [
        f"{name} -> {target}"
        for name, targets in IMPORTS.items()
        if under(name, room)
        for target in targets
        if any(under(target, other) for other in never)
    ]
    assert wrong == []


def test_private_packages_are_imported_only_by_the_library():
    """`vbfmt._…` may be imported from vbfmt and converters, `vbfmt.converters._…` from
    converters."""
    wrong = [
        f"{name} -> {target}"
        for name, targets in IMPORTS.items()
        for target in targets
        if under(target, "vbfmt.converters._files") and not under(name, "vbfmt.converters")
    ]
    assert wrong == []


def test_heavy_packages_are_imported_only_in_functions():
    script = (
        "import sys, vbfmt; vbfmt.load; "
        "print([m for m in ('torch', 'transformers', 'peft', 'rich', 'matplotlib', 'click', "
        "'ray', 'obstore', 'safetensors', 'vbfmt.converters') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_docstrings_name_the_class_of_the_librarys_warnings():
    """Earlier, some named its base class, by which a caller would also filter other packages'
    warnings."""
    for path in FILES:
        assert not re.search(r"^ +UserWarning:", path.read_text(encoding="utf-8"), re.M), path
