"""``vbfmt pack``: a VB-LoRA checkpoint → a packed file."""

from __future__ import annotations

import os

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
@click.option("--revision", metavar="REV", help="Of SRC on the Hub: a branch, a tag or a commit.")
@click.option("--card", is_flag=True, help="Write a model card (README.md) for the Hub, too.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def command(
    source: str,
    output: str,
    topk: int | None,
    layout: str | None,
    base: str | None,
    revision: str | None,
    card: bool,
    force: bool,
) -> None:
    """Pack a VB-LoRA checkpoint SRC into one small file.

    SRC is a folder or its weights file: PEFT's VB-LoRA (logits or top-k form) or Uni-LoRA, a whole
    model as the paper's authors save it, or a state dict in the layout of the paper's Algorithm 1.
    Where there is no such path, owner/name is a repository on the Hugging Face Hub.
    """
    from vbfmt import storage
    from vbfmt.cli.show import note, size, times, weight_of
    from vbfmt.converters import card as cards
    from vbfmt.converters import hub, open_source
    from vbfmt.errors import TargetError
    from vbfmt.packed import save

    readme = os.path.join(os.path.dirname(output), cards.NAME)
    if not force:
        storage.require_absent(output)
    if card and os.path.lexists(readme):  # it could be anybody's: not even --force
        raise TargetError(
            "there is one already", file=readme, advice="pack into a folder of its own"
        )
    path = hub.checkpoint(source, revision=revision, notice=note)
    opened = open_source(path, layout=layout)
    adapter = opened.read(topk=topk, base=base and hub.config(base, notice=note), notice=note)
    digest = save(adapter, output, overwrite=force)
    if card:
        text = cards.packed(adapter, os.path.basename(output), digest)
        storage.write(readme, [text], overwrite=False)
    before, after = weight_of(path), weight_of(output)
    click.echo(
        f"{output}: {size(after)}, {times(before / after)} smaller than {source} ({size(before)})"
    )
    click.echo(f"{len(adapter)} modules, {adapter.N} sub-vectors, {digest}")
    click.echo(f"read as {opened.reader.what}")
