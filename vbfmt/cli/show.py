"""How the command line says things: sizes, counts, notes."""

from __future__ import annotations

import json
import os

import click


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


def weight_of(path: str) -> int:
    """Bytes of a file, or of all files in a folder."""
    if not os.path.isdir(path):
        return os.path.getsize(path)
    with os.scandir(path) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.is_file())


def note(text: str) -> None:
    """Something the user should know, on stderr."""
    click.echo(f"note: {text}", err=True)


def as_json(value: object) -> None:
    """The answer for a script."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    click.echo(text.encode(errors="backslashreplace").decode())  # names that are no Unicode
