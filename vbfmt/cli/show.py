"""How the command line says things: lines, sizes, counts, notes.

Text from files reaches the terminal through `say`, `note` and `as_json` alone, none of which lets a
control character pass.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

import click

PathLike = str | os.PathLike[str]


def say(text: str) -> None:
    """One line of the answer."""
    from vbfmt.errors import printable

    click.echo(printable(text))


def note(text: str) -> None:
    """Something the user should know, on stderr."""
    from vbfmt.errors import printable

    click.echo(printable(f"note: {text}"), err=True)


def as_json(value: object) -> None:
    """The answer for a script: text as it is, but for what could write on a terminal."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    click.echo("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def size(count: float) -> str:
    """Bytes as people read them, in powers of 1000: ``19.7 MB``."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def times(ratio: float) -> str:
    """A ratio to two or three digits: ``104×``, ``3.4×``."""
    return f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×"


def counted(number: int, thing: str) -> str:
    """``1 module``, ``2 modules``."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def than(ours: float, other: float) -> str:
    """How much smaller or larger: ``104× smaller than``."""
    if ours <= other:
        return f"{times(other / ours)} smaller than"
    return f"{times(ours / other)} larger than"


def weight_of(files: Iterable[PathLike]) -> int:
    """Bytes of all of them."""
    return sum(os.path.getsize(file) for file in files)
