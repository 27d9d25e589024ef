"""``vbfmt unpack``: a packed file → a PEFT VB-LoRA folder."""

from __future__ import annotations

import click


@click.command("unpack")
@click.argument("file", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="The folder to write.")
@click.option("--card", is_flag=True, help="Write a model card (README.md) for the Hub, too.")
@click.option("--force", is_flag=True, help="Replace the files of an existing folder.")
def command(file: str, output: str, card: bool, force: bool) -> None:
    """Unpack FILE into a folder that PEFT loads as VB-LoRA (top-k form, float32)."""
    from vbfmt import storage
    from vbfmt.cli.show import size, weight_of
    from vbfmt.converters import card as cards
    from vbfmt.converters import peft
    from vbfmt.packed import load

    if not force:
        storage.require_absent(output)
    adapter = load(file)
    peft.write(adapter, output, overwrite=force, card=cards.vblora(adapter) if card else None)
    click.echo(f"{output}: PEFT VB-LoRA, {len(adapter)} modules, {size(weight_of(output))}")
