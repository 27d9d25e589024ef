"""Kinds of arguments that several commands take, checked before anything is done."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

# What is imported late is not imported to print a usage line.
LAYOUTS = ("peft", "unilora", "nlu", "algorithm1")
"""The names of `vbfmt.converters.READERS`."""

RUNTIMES = ("vllm", "sglang", "tgi", "llama.cpp", "ollama", "mlx")
"""The keys of `vbfmt.converters.runtimes.TAKES`."""

FIGURES = ("usage", "norms", "depth", "kinds", "selection", "projection", "delta")
"""The keys of `vbfmt.plot.FIGURES`."""

STANDARD_STREAM = "-"
"""Standard input or output, in place of a file's name."""

_DTYPES = {"fp32": "float32", "f32": "float32", "float": "float32"}
_DTYPES |= {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "half": "float16"}
"""Other names of dtypes → NumPy's."""

_INTO_FOLDER = "weights are written as safetensors into a folder by vbfmt unpack, expand or merge"
_WRITTEN_BY = {
    ".vblora": "packed files are written by vbfmt pack",
    ".safetensors": _INTO_FOLDER,
    ".bin": _INTO_FOLDER,
    ".pt": _INTO_FOLDER,
    ".pth": _INTO_FOLDER,
    ".gguf": "GGUF files are written by vbfmt expand",
    ".png": "pictures are written by vbfmt plot",
    ".svg": "pictures are written by vbfmt plot",
    ".html": "pages are written by vbfmt plot",
    ".json": "answers are printed as JSON with --json",
    ".zip": "no command writes archives",
    ".tar": "no command writes archives",
    ".gz": "no command writes archives",
}
"""Endings that name a form of file → how to get one, or what is written instead."""


class _Path(click.Path):
    """A path, or a repository's name: anything but nothing, which would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("an empty name", param, ctx)
        return value


class _Input(_Path):
    """A path that is read, where ``-`` is not standard input."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == STANDARD_STREAM:
            self.fail(
                "- (standard input) is for packed files; give a path, or ./- for that name",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


class _Dtype(click.Choice[str]):
    """A dtype by NumPy's name or a usual short one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name = str(value).lower().removeprefix("torch.")
        return super().convert(_DTYPES.get(name, name), param, ctx)


PACKED = _Path()
"""A packed file: a path, ``-`` for standard input, or a repository on the Hub."""

PATH = _Input()
"""A path that is read, or a repository on the Hub."""

DTYPE = _Dtype(["float32", "bfloat16", "float16"])
FORM = click.Choice(("embedded", "external"), case_sensitive=False)
LAYOUT = click.Choice(LAYOUTS, case_sensitive=False)
RUNTIME = click.Choice(RUNTIMES, case_sensitive=False)
JSON = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
WEIGHTS = click.option(
    "--weight",
    "weights",
    multiple=True,
    type=float,
    help="Weight of each FILE, in order; default: 1. Biases and heads are not scaled.",
)

BANKS = click.option(
    "--banks",
    multiple=True,
    type=PATH,
    metavar="DIR",
    help="Where banks of files without one are, besides beside the file. May be repeated.",
)


def output_option(
    what: str, *endings: str, required: bool = False, stream: bool = False
) -> Callable[[Any], Any]:
    """The option ``-o``, refused where the name's ending is that of another form of file.

    Args:
        what: is written, for the help.
        endings: that a name may have; other names without a known ending are taken too, unless
            they are `required`.
        stream: take ``-`` for standard output.
    """

    def named(ctx: click.Context, param: click.Parameter, value: str) -> str:
        if value == STANDARD_STREAM:
            if stream:
                return value
            raise click.BadParameter(
                "- (standard output) is for packed files alone; give a path", ctx, param
            )
        ending = _ending(value)
        if ending in endings:
            return value
        if required:
            raise click.BadParameter(
                f"{value!r} does not end with {', '.join(endings)}", ctx, param
            )
        if ending in _WRITTEN_BY:
            raise click.BadParameter(
                f"{value!r} ends with {ending}, but this command writes {what}; "
                f"{_WRITTEN_BY[ending]}",
                ctx,
                param,
            )
        return value

    return click.option(
        "-o",
        "--output",
        required=True,
        type=_Path(),
        callback=named,
        help=f"Where {what} is written; missing parent folders are created.",
    )


def digest(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse what is not ``sha256:`` and 64 hexadecimal digits, as every command prints it."""
    if value is not None and not re.fullmatch("sha256:[0-9a-f]{64}", value):
        raise click.BadParameter(
            f"{value!r} is not sha256: and 64 digits from 0 to 9 and a to f", ctx, param
        )
    return value


def _ending(path: str) -> str:
    name = re.split(r"[/\\]", path)[-1].lower()  # a name with a separator last is a folder's
    return f".{name.rpartition('.')[2]}" if "." in name[1:] else ""
