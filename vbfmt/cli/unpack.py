"""``vbfmt unpack``: an adapter → a PEFT VB-LoRA folder."""

from __future__ import annotations

import click

from vbfmt.cli.arguments import BANKS, JSON, PACKED, output_option
from vbfmt.cli.command import Command


@click.command(
    "unpack",
    cls=Command,
    examples=(
        "vbfmt unpack adapter.vblora -o peft-folder",
        "vbfmt unpack me/adapter -o peft-folder --card",
    ),
)
@click.argument("file", type=PACKED)
@output_option("a folder")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of FILE on the Hub.")
@BANKS
@click.option("--card", is_flag=True, help="Write a model card (README.md) for the Hub, too.")
@click.option("--force", is_flag=True, help="Replace the files of an existing folder.")
@JSON
def command(
    file: str,
    output: str,
    revision: str | None,
    banks: tuple[str, ...],
    card: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Unpack FILE into a folder that PEFT loads as VB-LoRA (top-k form, float32).

    FILE is a packed file, a checkpoint, - for standard input, or owner/name for a repository on the
    Hugging Face Hub if there is no such path.
    """
    from vbfmt.cli import show
    from vbfmt.cli.packed_input import adapter_path
    from vbfmt.cli.upload import show_upload_line
    from vbfmt.converters.operations.unpack import unpack

    path = adapter_path(file)
    done = unpack(path, output, revision=revision, banks=banks, card=card, overwrite=force)
    if as_json:
        from vbfmt.packed import digest

        show.as_json(
            {
                "output": output,
                "form": "PEFT VB-LoRA",
                "digest": digest(done.adapter),
                "bytes": done.size,
                "modules": len(done.adapter),
            }
        )
        return
    show.say(f"{output}: PEFT VB-LoRA, {len(done.adapter)} modules, {show.size(done.size)}")
    show_upload_line(output)
