"""Suggestions for commands that do not exist and for swapped arguments."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

_MEANT = {
    "compress": "pack",
    "convert": "expand",
    "export": "expand",
    "decompress": "unpack",
    "check": "verify",
    "validate": "verify",
    "info": "inspect",
    "show": "inspect",
    "compare": "diff",
    "cost": "estimate",
    "draw": "plot",
    "fuse": "merge",
}
"""Words that other tools use → our commands."""


def unknown_command(
    words: Sequence[str], commands: Sequence[str], ctx: click.Context
) -> click.UsageError:
    """Return the usage error for an unknown command, with a suggestion."""
    from vbfmt._similar import nearest
    from vbfmt.errors import printable

    first = words[0]
    named = next((word for word in words[1:] if word in commands), None)
    near = nearest(first.lower(), commands, count=1)
    meant = _MEANT.get(first.lower()) or (near[0] if near else None)
    if named is not None and os.path.lexists(first):
        advice = f" Give the command first: vbfmt {named} {first}"
    elif os.path.lexists(first):
        command = "verify" if os.path.isfile(first) else "pack"
        advice = f" It is a path; give a command first, as in: vbfmt {command} {first}"
    elif meant is not None:
        advice = f" Did you mean {meant!r}?"
    else:
        advice = f" Commands: {', '.join(commands)}."
    return click.UsageError(printable(f"No such command {first!r}.{advice}"), ctx)


def require_base_is_no_adapter(base: str | None, files: Sequence[str]) -> None:
    """Refuse a packed file as the base model: the arguments are probably swapped.

    Raises:
        click.UsageError: `base` ends with ``.vblora``.
    """
    if base is not None and base.lower().endswith(".vblora"):
        model = next((file for file in files if os.path.isdir(file)), "MODEL")
        raise click.UsageError(
            f"--base is a packed adapter, not a model; did you mean: "
            f"vbfmt merge {base} --base {model}"
        )


def require_not_packed(source: str, output: str) -> None:
    """Refuse to pack a packed file: the arguments are probably swapped.

    Raises:
        click.UsageError: `source` is a file that ends with ``.vblora``.
    """
    if source.lower().endswith(".vblora") and os.path.isfile(source):
        swapped = os.path.isdir(output)
        advice = (
            f"did you mean: vbfmt pack {output} -o {source}"
            if swapped
            else "vbfmt unpack, expand or merge converts it"
        )
        raise click.UsageError(f"{source} is packed already; {advice}")
