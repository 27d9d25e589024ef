"""``vbfmt expand``: packed files → standard LoRA, in the form that a runtime takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from vbfmt.cli.arguments import BANKS, PATH, RUNTIMES, WEIGHTS

if TYPE_CHECKING:
    from vbfmt.converters.lowrank.combine import Sum


@click.command("expand")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="The folder (or .gguf) to write.")
@WEIGHTS
@click.option("--rank", type=click.IntRange(min=1), help="Reduce the rank to this one.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of the factors.",
)
@click.option(
    "--to",
    type=click.Choice(["peft", "gguf", "mlx"]),
    default="peft",
    show_default=True,
    help="PEFT's folder (vLLM, SGLang, TGI too), llama.cpp's file, or mlx-lm's folder.",
)
@click.option("--base", type=PATH, help="For gguf: the base's folder, repository or GGUF.")
@click.option("--revision", metavar="REV", help="Of FILEs on the Hub: a branch, tag or commit.")
@click.option("--check", type=click.Choice(RUNTIMES), help="Say what it would refuse or drop.")
@click.option("--drop-extras", is_flag=True, help="Leave out trained biases and heads.")
@BANKS
@click.option("--card", is_flag=True, help="Write a model card (README.md) for the Hub, too.")
@click.option("--force", is_flag=True, help="Replace the files of an existing folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer, all losses too, as JSON.")
def command(
    files: tuple[str, ...],
    output: str,
    weights: tuple[float, ...],
    rank: int | None,
    dtype: str,
    to: str,
    base: str | None,
    revision: str | None,
    check: str | None,
    drop_extras: bool,
    banks: tuple[str, ...],
    card: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Expand FILE into standard LoRA.

    The factors are exact; alpha equals the rank, so that nothing is scaled. Several FILEs become
    one LoRA, the sum of their changes, each times its --weight: its rank is the sum of theirs.
    --rank takes the best approximation of a lower rank instead and prints what it loses.
    --check writes nothing if that runtime would refuse it, or takes another form (--to).
    Where there is no such file, owner/name is a repository on the Hugging Face Hub that holds one.
    """
    if weights and len(weights) != len(files):
        raise click.UsageError(f"{len(weights)} --weight for {len(files)} files")
    from vbfmt.cli import place, show
    from vbfmt.cli.show import note
    from vbfmt.converters import WRITERS, runtimes, sources
    from vbfmt.converters.hub import card as cards
    from vbfmt.converters.lowrank import combine, reduction
    from vbfmt.converters.names import targets
    from vbfmt.packed import load

    if check and runtimes.TAKES[check] != to:
        raise click.UsageError(f"{check} takes no --to {to}: add --to {runtimes.TAKES[check]}")
    writer = WRITERS[to]
    (place.require_folder if writer.files else place.require_file)(output, force=force)
    if base and not writer.wants_base:
        raise click.UsageError(f"--base is not for --to {to}")
    if card and to == "gguf":
        raise click.UsageError("--card is for folders; --to gguf writes a file")
    paths = [sources.packed(file, revision=revision) for file in files]
    base = base and sources.config(base)
    inputs = [*paths, *place.configs(base)]
    place.require_not_read(output, inputs)
    place.require_none_read(output, (*writer.files, cards.NAME), inputs)
    total = combine.weighted(
        [load(path, banks=banks) for path in paths], weights, drop_extras=drop_extras
    )
    lost: dict[str, float] = {}
    adapter = total if rank is None else reduction.Reduced(total, rank, lost.__setitem__)
    found = (
        runtimes.require_loadable(adapter, check, drop_extras=drop_extras)
        if check is not None
        else []
    )
    for finding in found:
        note(str(finding))
    options: dict[str, Any] = {}
    if writer.wants_base:
        options["base"] = base
    if card:
        options["card"] = cards.lora(adapter, to)
    written = writer.write(
        adapter, output, dtype=dtype, drop_extras=drop_extras, overwrite=force, **options
    )
    doubt = targets.doubt([module.name for module in adapter.modules]) if to == "peft" else None
    for notice in filter(None, [*_notices(total, check), doubt]):
        note(notice)
    answer = {
        "output": output,
        "form": writer.name,
        "rank": max(module.rank for module in adapter.modules),
        "dtype": dtype,
        "modules": len(adapter.modules),
        "bytes": written,
        "lost": lost,
        "check": check,
        "findings": [str(finding) for finding in found],
    }
    if as_json:
        show.as_json(answer)
        return
    show.say(
        f"{output}: {writer.what} of rank {answer['rank']} in {dtype}, {len(adapter.modules)} "
        f"modules, {show.size(written)}"
    )
    if check and not found:
        show.say(f"{check}: nothing against it")
    if rank is not None:
        _say_losses(rank, max(module.rank for module in total.modules), lost)


def _say_losses(rank: int, before: int, lost: Mapping[str, float]) -> None:
    from vbfmt.cli.show import say

    if before <= rank:
        say(f"nothing lost: the rank was {before} already")
        return
    mean = sum(lost.values()) / len(lost)
    say(
        "lost to the lower rank, as a share of each change's Frobenius norm: "
        f"{mean:.3g} on average over {len(lost)} modules"
    )
    for name in sorted(lost, key=lambda name: (-lost[name], name)):
        say(f"  {name}  {lost[name]:.3g}")


def _notices(total: Sum, check: str | None) -> Iterator[str]:
    from vbfmt.converters.lowrank.combine import disagreement, unweighted

    extras = list(total.extras)
    if extras:
        names = ", ".join(extras[:3]) + (", …" if len(extras) > 3 else "")
        advice = (
            "" if check else ", which not every runtime takes: --check RUNTIME or --drop-extras"
        )
        done = "left out" if total.drop_extras else f"kept{advice}"
        yield f"{len(extras)} other trained tensors ({names}) {done}"
    whole = unweighted(total)
    if whole:
        yield whole
    doubt = disagreement(total)
    if doubt:
        yield doubt
    elif not total.base_model:
        yield ("the checkpoint names no base model; some runtimes want base_model_name_or_path")
