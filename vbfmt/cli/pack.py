"""``vbfmt pack``: a VB-LoRA checkpoint → a packed file."""

from __future__ import annotations

import click


@click.command("pack")
@click.argument("source", metavar="SRC", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="The .vblora file to write.")
@click.option("--topk", type=click.IntRange(min=1), help="k, for logits without a config.")
@click.option(
    "--layout",
    metavar="NAME",
    help="What SRC is, if it does not tell: peft, unilora, nlu or algorithm1.",
)
@click.option("--base", type=click.Path(), help="For Uni-LoRA with only a seed: the base's folder.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def command(
    source: str, output: str, topk: int | None, layout: str | None, base: str | None, force: bool
) -> None:
    """Pack a VB-LoRA checkpoint SRC into one small file.

    SRC is a folder or its weights file: PEFT's VB-LoRA (logits or top-k form) or Uni-LoRA, a whole
    model as the paper's authors save it, or a state dict in the layout of the paper's Algorithm 1.
    """
    from vbfmt import storage
    from vbfmt.cli.show import note, size, times, weight_of
    from vbfmt.converters import open_source
    from vbfmt.packed import save

    if not force:
        storage.require_absent(output)
    opened = open_source(source, layout=layout)
    adapter = opened.read(topk=topk, base=base, notice=note)
    digest = save(adapter, output, overwrite=force)
    before, after = weight_of(source), weight_of(output)
    click.echo(
        f"{output}: {size(after)}, {times(before / after)} smaller than {source} ({size(before)})"
    )
    click.echo(f"{len(adapter)} modules, {adapter.N} sub-vectors, {digest}")
    click.echo(f"read as {opened.reader.what}")
