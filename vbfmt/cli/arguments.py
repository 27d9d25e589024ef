"""Arguments and options that several commands share, validated before a command runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import click

from vbfmt.cli import process

# These tuples repeat names from other modules, so that a usage line needs no import of them.
LAYOUTS = ("peft", "unilora", "nlu", "algorithm1")
"""The names of `vbfmt.converters.READERS`."""

RUNTIMES = ("vllm", "sglang", "tgi", "llama.cpp", "ollama", "mlx")
"""The keys of `vbfmt.converters.runtimes.FORMS`."""

FIGURES = ("usage", "norms", "depth", "kinds", "selection", "projection", "delta")
"""The keys of `vbfmt.plot.FIGURES`."""

STANDARD_STREAM = "-"
"""The argument that stands for standard input or output."""

_DTYPES = {"fp32": "float32", "f32": "float32", "float": "float32"}
_DTYPES |= {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "half": "float16"}
"""Short names of dtypes → NumPy's names."""

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
    ".json": "results are printed as JSON with --json",
    ".zip": "no command writes archives",
    ".tar": "no command writes archives",
    ".gz": "no command writes archives",
}
"""Ending of a file name → how to get such a file, or what is written instead."""


class _Path(click.Path):
    """A path or the name of a repository. An empty string is refused, because it would mean the
    current folder.

    Args:
        stream: accept ``-``.
    """

    def __init__(self, *, stream: bool) -> None:
        super().__init__()
        self._stream = stream

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("the name is empty", param, ctx)
        if value == STANDARD_STREAM and not self._stream:
            what = "- (standard input) is only for packed files"
            self.fail(f"{what}; give a path, or ./- for that name", param, ctx)
        return value


class _Dtype(click.Choice[str]):
    """A dtype: NumPy's name or a common short name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name = str(value).lower().removeprefix("torch.")
        return super().convert(_DTYPES.get(name, name), param, ctx)


PACKED = _Path(stream=True)
"""A packed file: a path, ``-`` for standard input, or a repository on the Hub."""

PATH = _Path(stream=False)
"""An input path, or a repository on the Hub."""

DTYPE = _Dtype(["float32", "bfloat16", "float16"])
LAYOUT = click.Choice(LAYOUTS, case_sensitive=False)
RUNTIME = click.Choice(RUNTIMES, case_sensitive=False)
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
WEIGHTS = click.option(
    "--weight",
    "weights",
    multiple=True,
    type=float,
    help="Weight of each FILE, in order; default: 1. Biases and heads are not scaled.",
)

BANK = click.option(
    "--bank",
    type=click.Choice(("embedded", "external"), case_sensitive=False),
    default="embedded",
    help="external: write the bank to <SHA-256>.bank, which adapters can share.",
)

BANKS = click.option(
    "--banks",
    multiple=True,
    type=PATH,
    metavar="DIR",
    help="Folder to search for external banks, before a file's own folder. May be repeated.",
)

TOPK = click.option(
    "--topk",
    type=click.IntRange(min=1),
    help="Vectors per sub-vector, k; only for logits without a config.",
)

CARD = click.option("--card", is_flag=True, help="Write a model card (README.md) for the Hub, too.")


def revision_option(whose: str) -> Callable[[Any], Any]:
    """Return the option ``--revision`` for inputs that may be repositories on the Hub."""
    return click.option(
        "--revision", metavar="REV", help=f"Branch, tag or commit of {whose} on the Hub."
    )


def force_option(what: str) -> Callable[[Any], Any]:
    """Return the option ``--force``, whose value is the library's parameter `overwrite`."""
    return click.option("--force", "overwrite", is_flag=True, help=f"Replace {what}.")


def output_option(
    what: str, *endings: str, required: bool = False, stream: bool = False
) -> Callable[[Any], Any]:
    """Return the option ``-o``, which refuses the name of another kind of file.

    Args:
        what: what is written, for the help.
        endings: endings of this kind of file. Names with an unknown ending, or no ending, are
            accepted.
        required: accept only names with one of `endings`.
        stream: accept ``-`` for standard output.
    """

    def named(ctx: click.Context, param: click.Parameter, value: str) -> str:
        if value == STANDARD_STREAM:
            if stream and "stdout" in process.closed:
                raise click.BadParameter("- is standard output, which is closed", ctx, param)
            if stream:
                return value
            raise click.BadParameter(
                "only vbfmt pack writes to standard output (-); give a path", ctx, param
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
        type=_Path(stream=True),
        callback=named,
        help=f"Where {what} is written; missing parent folders are created.",
    )


def require_weights(weights: Sequence[float], files: Sequence[str]) -> None:
    """Refuse --weight for some of the files only."""
    if weights and len(weights) != len(files):
        raise click.UsageError(f"{len(weights)} --weight for {len(files)} files; give one for each")


def digest(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse a digest that is not ``sha256:`` and 64 lower-case hexadecimal digits."""
    if value is not None and not re.fullmatch("sha256:[0-9a-f]{64}", value):
        raise click.BadParameter(
            f"{value!r} is not sha256: and 64 digits from 0 to 9 and a to f", ctx, param
        )
    return value


def _ending(path: str) -> str:
    name = re.split(r"[/\\]", path)[-1].lower()  # empty for a folder, ``name/``
    return f".{name.rpartition('.')[2]}" if "." in name[1:] else ""
