"""``vbfmt estimate``: what an adapter will cost, before it is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from vbfmt.cli import arguments as args
from vbfmt.cli import show
from vbfmt.cli.command import Command

if TYPE_CHECKING:
    from vbfmt.estimate import Cost, Linear, Shape

_SHORT = 16
"""A shorter vector length gets a warning."""


def _count(*names: str, **options: Any) -> Callable[[Any], Any]:
    """Return an option that takes a number from 1."""
    return click.option(*names, type=click.IntRange(min=1), show_default=True, **options)


@click.command(
    "estimate",
    cls=Command,
    examples=(
        "vbfmt estimate --model llama-2-7b",
        "vbfmt estimate --model llama-2-7b --num-vectors 2048 --rank 8 --targets qv",
        "vbfmt estimate --base me/model --vector-length 64",
    ),
)
@click.option("--model", metavar="NAME", help="One of the paper's models: llama-2-7b and others.")
@click.option("--base", type=args.PATH, help="A model's folder, its config.json, or a repository.")
@args.revision_option("the base")
@click.option(
    "--targets",
    default="all",
    show_default=True,
    help="Layers: all, qv (query and value), or leaf names separated by commas.",
)
@_count("--num-vectors", "--h", "h", default=256, help="Bank size, h.")
@_count(
    "--vector-length",
    "--b",
    "b",
    help="Vector length, b.  [default: the largest that fits, up to 256]",
)
@_count("--topk", "--k", "k", default=2, help="Vectors per sub-vector, k.")
@_count("--rank", "--r", "r", default=4, help="Rank, r.")
@_count("--lora-rank", "lora", help="Rank of LoRA.  [default: r]")
@_count("--tied-rank", "tied", help="Rank of Tied-LoRA.  [default: r]")
@_count("--vera-rank", "vera", default=256, help="Rank of VeRA.")
@_count("--xs-rank", "xs", default=64, help="Rank of LoRA-XS.")
@_count("--uni-length", "uni", help="Length of Uni-LoRA's vector.  [default: h · b]")
@args.JSON
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: str | None,
    base: str | None,
    revision: str | None,
    targets: str,
    h: int,
    b: int | None,
    k: int,
    r: int,
    as_json: bool,
    **ranks: Any,
) -> None:
    """Count what VB-LoRA and other methods would train and store.

    Give a model's name (--model) or its folder (--base). No weights and no PyTorch are needed.
    """
    from vbfmt.estimate import Ranks, Shape, choose, compare
    from vbfmt.estimate.shape import suggested_length

    layers = choose(_layers(ctx, model, base, revision), targets)
    shape = Shape(h, b or suggested_length(layers), k, r)
    _require_fit(layers, shape)
    costs = compare(layers, shape, Ranks(**ranks))
    if as_json:
        _print_json(model or base, layers, shape, costs)
    else:
        _print_table(model or base, layers, shape, costs)
    _warn_of_wide_indices(layers, shape)
    _warn_of_short_vectors(layers, shape)


def _layers(
    ctx: click.Context, model: str | None, base: str | None, revision: str | None
) -> tuple[Linear, ...]:
    from vbfmt.estimate import linears
    from vbfmt.estimate.models import PRESETS, from_folder

    if (model is None) == (base is None):
        raise click.UsageError(f"give either --model or --base; models: {', '.join(PRESETS)}", ctx)
    if base is not None:
        return from_folder(_located(base, revision))
    if revision is not None:
        raise click.UsageError("--revision needs --base", ctx)
    model = model and model.lower()
    if model is None or model not in PRESETS:
        raise click.BadParameter(
            f"{model!r} is not one of {', '.join(PRESETS)}; give other models with --base",
            ctx,
            param_hint="--model",
        )
    return linears(PRESETS[model])


def _located(base: str, revision: str | None) -> str:
    """Return the local path of the base; import the Hub's client only if it is not local."""
    import os

    if revision is None and os.path.lexists(base):
        return base
    from vbfmt.converters import sources

    return sources.config(base, revision=revision)


def _require_fit(layers: tuple[Linear, ...], shape: Shape) -> None:
    from vbfmt.errors import ContentError
    from vbfmt.estimate.shape import lengths_that_fit

    fitting = lengths_that_fit(layers)
    if shape.b not in fitting:
        raise ContentError(
            "b does not divide every dimension of these layers",
            part="--vector-length",
            found=shape.b,
            expected=f"one of {', '.join(map(str, fitting))}",
        )


def _print_table(
    name: str | None, layers: tuple[Linear, ...], shape: Shape, costs: tuple[Cost, ...]
) -> None:
    from vbfmt.estimate.architecture import dimensions
    from vbfmt.estimate.shape import lengths_that_fit

    leaves = ", ".join(dict.fromkeys(layer.leaf for layer in layers))
    show.say(f"{name or ''}: {len(layers)} linear layers ({leaves})")
    show.say(f"N = {shape.subvectors(layers):,} sub-vectors")
    lines = [
        (
            c.method.replace(" = ", "="),
            f"{c.trained:,}",
            f"{round(c.stored):,}",
            show.size(c.bytes),
            "" if c is costs[0] else show.times(c.bytes / costs[0].bytes),
        )
        for c in costs
    ]
    titles = ("", "trained", "stored", "on disk", "ratio")
    widths = [max(len(line[i]) for line in [titles, *lines]) for i in range(len(titles))]
    for line in [titles, *lines]:
        cells = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        show.say("  ".join(cells).rstrip())
    show.say("stored: float32-equivalents; on disk: VB-LoRA packed, the others 4 bytes a number")
    show.say("ratio: bytes on disk, relative to VB-LoRA's")
    fitting = [n for n in lengths_that_fit(layers) if n >= 16]
    show.say(
        f"b can be {', '.join(map(str, fitting)) or 'at most 15'}; "
        f"it must divide {', '.join(map(str, dimensions(layers)))}"
    )


def _print_json(
    name: str | None, layers: tuple[Linear, ...], shape: Shape, costs: tuple[Cost, ...]
) -> None:
    from vbfmt.estimate.shape import lengths_that_fit, suggested_length

    show.as_json(
        {
            "model": name,
            "layers": len(layers),
            **dataclasses.asdict(shape),
            "N": shape.subvectors(layers),
            "methods": [dataclasses.asdict(cost) for cost in costs],
            "b_that_fit": lengths_that_fit(layers),
            "b_suggested": suggested_length(layers),
        }
    )


def _warn_of_wide_indices(layers: tuple[Linear, ...], shape: Shape) -> None:
    if shape.h > 256:
        more = shape.subvectors(layers) * shape.k
        show.note(
            f"h = {shape.h} is above 256: every index takes 16 bits instead of 8, "
            f"{show.size(more)} more in all"
        )


def _warn_of_short_vectors(layers: tuple[Linear, ...], shape: Shape) -> None:
    from vbfmt.estimate.architecture import dimensions

    if shape.b < _SHORT:
        divided = ", ".join(map(str, dimensions(layers)))
        show.note(
            f"b = {shape.b} is short: there are {shape.k} indices for every {shape.b} parameters "
            f"of LoRA; b must divide {divided}: to allow a longer b, choose other --targets"
        )
