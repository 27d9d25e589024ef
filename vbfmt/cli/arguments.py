"""Kinds of arguments that several commands take, checked before anything is done."""

from __future__ import annotations

import re
from typing import Any

import click

# What is imported late is not imported to print a usage line.
LAYOUTS = ("peft", "unilora", "nlu", "algorithm1")
"""The names of `vbfmt.converters.READERS`."""

RUNTIMES = ("vllm", "sglang", "tgi", "llama.cpp", "ollama", "mlx")
"""The keys of `vbfmt.converters.runtimes.TAKES`."""

FIGURES = ("usage", "norms", "depth", "kinds", "selection", "projection", "delta")
"""The keys of `vbfmt.plot.FIGURES`."""


class _Path(click.Path):
    """A path, or a repository's name: anything but nothing, which would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("an empty name", param, ctx)
        return value


PATH = _Path()
FORM = click.Choice(("embedded", "external"))
LAYOUT = click.Choice(LAYOUTS)
WEIGHTS = click.option(
    "--weight",
    "weights",
    multiple=True,
    type=float,
    help="Of each FILE, in order; 1 if left out. Biases and heads are taken whole.",
)
BANKS = click.option(
    "--banks",
    multiple=True,
    type=PATH,
    metavar="DIR",
    help="Where banks of files without one are, besides beside the file. May be repeated.",
)


def digest(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse what is not ``sha256:`` and 64 hexadecimal digits, as every command prints it."""
    if value is not None and not re.fullmatch("sha256:[0-9a-f]{64}", value):
        raise click.BadParameter(
            f"{value!r} is not sha256: and 64 digits from 0 to 9 and a to f", ctx, param
        )
    return value
