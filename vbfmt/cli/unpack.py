"""``vbfmt unpack``: an adapter → a PEFT VB-LoRA folder."""

from __future__ import annotations

from typing import Any

import click

from vbfmt.cli import arguments as args
from vbfmt.cli import show
from vbfmt.cli.command import Command


@click.command(
    "unpack",
    cls=Command,
    examples=(
        "vbfmt unpack adapter.vblora -o peft-folder",
        "vbfmt unpack me/adapter -o peft-folder --card",
    ),
)
@click.argument("file", type=args.PACKED)
@args.output_option("a folder")
@args.revision_option("FILE")
@args.BANKS
@args.CARD
@args.force_option("the files of an existing folder")
@args.JSON
def command(file: str, output: str, as_json: bool, **options: Any) -> None:
    """Unpack FILE into a folder that PEFT loads as VB-LoRA (top-k form, float32).

    FILE is a packed file, a checkpoint, - for standard input, or owner/name for a repository on the
    Hugging Face Hub if there is no such path.
    """
    from vbfmt.cli.packed_input import adapter_path
    from vbfmt.cli.written import show_upload_line
    from vbfmt.converters.operations.unpack import unpack

    done = unpack(adapter_path(file), output, **options)
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
