"""``vbfmt unpack``: a packed file → a PEFT VB-LoRA folder."""

from __future__ import annotations

import click

from vbfmt.cli.arguments import BANKS, PATH


@click.command("unpack")
@click.argument("file", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="The folder to write.")
@BANKS
@click.option("--card", is_flag=True, help="Write a model card (README.md) for the Hub, too.")
@click.option("--force", is_flag=True, help="Replace the files of an existing folder.")
def command(file: str, output: str, banks: tuple[str, ...], card: bool, force: bool) -> None:
    """Unpack FILE into a folder that PEFT loads as VB-LoRA (top-k form, float32)."""
    from vbfmt._files import peft_layout
    from vbfmt.cli import place
    from vbfmt.cli.show import say, size
    from vbfmt.converters import peft
    from vbfmt.converters.hub import card as cards
    from vbfmt.packed import load

    place.require_folder(output, force=force)
    place.require_none_read(
        output, (peft_layout.WEIGHTS, peft_layout.CONFIG, *([cards.NAME] if card else [])), [file]
    )
    adapter = load(file, banks=banks)
    written = peft.write(
        adapter, output, overwrite=force, card=cards.vblora(adapter) if card else None
    )
    say(f"{output}: PEFT VB-LoRA, {len(adapter)} modules, {size(written)}")
