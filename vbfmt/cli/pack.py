"""``vbfmt pack``: a VB-LoRA checkpoint → a packed file."""

from __future__ import annotations

import os
from typing import Literal

import click

from vbfmt.cli.arguments import FORM, LAYOUT, PATH


@click.command("pack")
@click.argument("source", metavar="SRC", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="The .vblora file to write.")
@click.option("--topk", type=click.IntRange(min=1), help="k, for logits without a config.")
@click.option("--layout", type=LAYOUT, help="What SRC is, if it does not tell.")
@click.option("--base", type=PATH, help="For Uni-LoRA with only a seed: the base's folder.")
@click.option("--revision", metavar="REV", help="Of SRC on the Hub: a branch, a tag or a commit.")
@click.option("--card", is_flag=True, help="Write a model card (README.md) for the Hub, too.")
@click.option(
    "--bank",
    type=FORM,
    default="embedded",
    help="Where the bank goes: external is <SHA-256>.bank, shared.",
)
@click.option(
    "--banks", type=PATH, metavar="DIR", help="Folder for an external bank; the output's."
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
def command(
    source: str,
    output: str,
    topk: int | None,
    layout: str | None,
    base: str | None,
    revision: str | None,
    card: bool,
    bank: Literal["embedded", "external"],
    banks: str | None,
    force: bool,
) -> None:
    """Pack a VB-LoRA checkpoint SRC into one small file.

    SRC is a folder or its weights file: PEFT's VB-LoRA (logits or top-k form) or Uni-LoRA, a whole
    model as the paper's authors save it, or a state dict in the layout of the paper's Algorithm 1.
    Where there is no such path, owner/name is a repository on the Hugging Face Hub.
    """
    if banks is not None and bank == "embedded":
        raise click.UsageError("--banks is for --bank external")
    from vbfmt._files import storage
    from vbfmt.cli import place
    from vbfmt.cli.show import say, size, than, weight_of
    from vbfmt.converters import open_source, sources
    from vbfmt.converters.hub import card as cards
    from vbfmt.errors import TargetError
    from vbfmt.packed import digest, write

    readme = os.path.join(os.path.dirname(output), cards.NAME)
    place.require_file(output, force=force)
    if card and os.path.lexists(readme):  # it could be anybody's: not even --force
        raise TargetError(
            "there is one already", file=readme, advice="pack into a folder of its own"
        )
    path = sources.checkpoint(source, revision=revision)
    opened = open_source(path, layout=layout)
    base = base and sources.config(base)
    place.require_not_read(output, [*opened.files, *place.configs(base)])
    before = weight_of(opened.files)
    adapter = opened.read(topk=topk, base=base)
    text = cards.packed(adapter, os.path.basename(output), digest(adapter)) if card else None
    done = write(adapter, output, overwrite=force, bank=bank, banks=banks)
    if text is not None:
        storage.write(readme, [text], overwrite=False)
    say(f"{output}: {size(done.size)}, {than(done.size, before)} {source} ({size(before)})")
    if done.bank is not None:
        say(f"its bank, to be shared: {done.bank}, {size(adapter.bank.nbytes)}")
    say(f"{len(adapter)} modules, {adapter.N} sub-vectors, {done.digest}")
    say(f"read as {opened.reader.what}")
