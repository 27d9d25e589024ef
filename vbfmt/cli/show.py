"""Print the output of commands: lines, notes, JSON, sizes and counts.

Each call of `click.echo` names its stream. Otherwise, click would replace a standard stream whose
encoding is ASCII.

Text from files is printed to the terminal only by the functions here, which escape control
characters.
"""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

import click

from vbfmt._files import PathLike
from vbfmt.cli import indented
from vbfmt.errors import printable

_VERBOSITY = "vbfmt.verbosity"
_OUTPUT_IS_DATA = "vbfmt.output_is_data"
_PRINTED_JSON = "vbfmt.printed_json"


def verbosity(ctx: click.Context | None = None) -> int:
    """Return -1 with --quiet, 1 with --verbose, else 0."""
    level: int = _meta(ctx).get(_VERBOSITY, 0)
    return level


def set_verbosity(ctx: click.Context, level: int) -> None:
    """Set the verbosity of the running command to -1, 0 or 1."""
    ctx.meta[_VERBOSITY] = level


def keep_output_for_data() -> None:
    """Print lines to stderr from now on, because the command writes a file to stdout."""
    click.get_current_context().meta[_OUTPUT_IS_DATA] = True


def say(text: str) -> None:
    """Print one line of output, unless --quiet."""
    if verbosity() >= 0:
        say_always(text)


def say_always(text: str) -> None:
    """Print one line of output, even with --quiet."""
    stream = _stream()
    click.echo(fitted(printable(text), stream), file=stream)


def say_whole(text: str) -> None:
    """Print one line of output, unless --quiet, without breaking it.

    The terminal then wraps the line, and joins it again when the user copies it.
    """
    if verbosity() >= 0:
        click.echo(printable(text), file=_stream())


def _stream() -> TextIO:
    return sys.stderr if _meta().get(_OUTPUT_IS_DATA, False) else sys.stdout


def detail(text: str) -> None:
    """Print one line of output, with --verbose only."""
    if verbosity() > 0:
        say_always(text)


def note(text: str) -> None:
    """Print a note on stderr, unless --quiet."""
    if verbosity() >= 0:
        click.echo(fitted(printable(f"note: {text}"), sys.stderr), file=sys.stderr)


def fitted(line: str, stream: TextIO) -> str:
    """Return a line, broken between words if `stream` is a narrower terminal.

    For a file or a pipe, the line is not broken, so that programs can read it.
    """
    if not stream.isatty():
        return line
    import textwrap

    indent = line[: len(line) - len(line.lstrip())]
    pieces = textwrap.wrap(
        line.lstrip(),
        terminal_width(),
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(pieces) if len(pieces) > 1 else line


def terminal_width() -> int:
    """Return the width of the terminal, 80 if it is unknown.

    A terminal may report a width of 0, and Python before 3.11 returns that.
    """
    import shutil

    return shutil.get_terminal_size().columns or 80


def as_json(value: object) -> None:
    """Print a value as JSON.

    Characters that could control a terminal, or that the output's encoding lacks, are escaped. An
    iterator is printed as a list.
    """
    _meta()[_PRINTED_JSON] = True
    pieces: list[str] = []
    for piece in indented.pieces(value, ensure_ascii=not _encodes_unicode()):
        pieces.append(piece)
        if len(pieces) == _PIECES:
            click.echo(_escaped("".join(pieces)), file=sys.stdout, nl=False)
            pieces.clear()
    click.echo(_escaped("".join(pieces)), file=sys.stdout)


def as_json_line(value: object) -> None:
    """Print a value as JSON in ASCII, in one line."""
    _meta()[_PRINTED_JSON] = True
    click.echo(json.dumps(value), file=sys.stdout)


def has_printed_json(ctx: click.Context) -> bool:
    """Return whether the running command has printed JSON."""
    return bool(_meta(ctx).get(_PRINTED_JSON, False))


_PIECES = 1000
"""Number of pieces of JSON that are printed at a time."""


def _escaped(text: str) -> str:
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def _encodes_unicode() -> bool:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return encoding.lower().replace("-", "").startswith("utf")


def _meta(ctx: click.Context | None = None) -> dict[str, Any]:
    ctx = ctx or click.get_current_context(silent=True)
    return {} if ctx is None else ctx.meta


def size(count: float) -> str:
    """Return a number of bytes as text, in powers of 1000: ``19.7 MB``."""
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def times(ratio: float) -> str:
    """Return a ratio as text, with a decimal if it is below 10: ``104×``, ``3.4×``."""
    return f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×"


def counted(number: int, thing: str) -> str:
    """Return a number with its noun: ``1 module``, ``2 modules``."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def than(ours: float, other: float) -> str:
    """Compare `ours` with `other`, as text: ``104× smaller than``."""
    if ours <= other:
        return f"{times(other / ours)} smaller than"
    return f"{times(ours / other)} larger than"


def sha256(path: PathLike) -> str:
    """Return the SHA-256 of a file in hexadecimal, as ``sha256sum`` prints it."""
    import hashlib

    found = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()
