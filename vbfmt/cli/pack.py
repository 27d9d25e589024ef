"""``vbfmt pack``: a VB-LoRA checkpoint → a packed file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import click

from vbfmt.cli import arguments as args
from vbfmt.cli import show
from vbfmt.cli.command import Command

if TYPE_CHECKING:
    from vbfmt.converters.operations.pack import Packed


@click.command(
    "pack",
    cls=Command,
    has_jobs=True,
    examples=(
        "vbfmt pack checkpoint -o adapter.vblora",
        "vbfmt pack me/adapter -o adapter.vblora --card",
        "vbfmt pack checkpoint/adapter_model.bin --topk 2 -o adapter.vblora",
        "vbfmt pack checkpoint -o - | vbfmt verify -",
    ),
)
@click.argument("source", metavar="SRC", type=args.PATH)
@args.output_option("a packed file (.vblora)", ".vblora", stream=True)
@args.TOPK
@click.option("--layout", type=args.LAYOUT, help="The layout of SRC, if it cannot be recognized.")
@click.option(
    "--base", type=args.PATH, help="For Uni-LoRA with only a seed: the base model's folder."
)
@click.option("--base-model", metavar="NAME", help="Base model name to record, instead of SRC's.")
@args.revision_option("SRC")
@args.CARD
@args.BANK
@click.option(
    "--banks",
    type=args.PATH,
    metavar="DIR",
    help="Folder for an external bank; default: the output's folder.",
)
@args.force_option("an existing file")
@args.JSON
def command(
    source: str,
    output: str,
    card: bool,
    bank: Literal["embedded", "external"],
    banks: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Pack a VB-LoRA checkpoint SRC into one small file.

    SRC is a folder or its weights file: PEFT's VB-LoRA (logits or top-k form) or Uni-LoRA, a whole
    model as the paper's authors save it, or a state dict in the layout of the paper's Algorithm 1.
    If there is no such path, owner/name is a repository on the Hugging Face Hub; hf:// and the
    address of its page are accepted too. With -o - the file is written to standard output.
    """
    from vbfmt.cli.suggestions import require_not_packed
    from vbfmt.cli.written import show_upload_line
    from vbfmt.converters.operations.pack import pack

    if banks is not None and bank == "embedded":
        raise click.UsageError("--banks needs --bank external")
    require_not_packed(source, output)
    to_stream = output == args.STANDARD_STREAM
    if to_stream:
        _require_stream_is_alone(card, as_json)
        show.keep_output_for_data()
    target = sys.stdout.buffer if to_stream else output
    done = pack(source, target, card=card, bank=bank, banks=banks, **options)
    if as_json:
        show.as_json(_facts(done, source, output))
        return
    for line in _lines(done, source, output):
        show.say(line)
    if not to_stream:
        readme = os.path.join(os.path.dirname(output), "README.md") if card else None
        show_upload_line(output, done.bank, readme)


def _facts(done: Packed, source: str, output: str) -> dict[str, Any]:
    return {
        "output": output,
        "digest": done.digest,
        "bytes": done.size,
        "source": source,
        "source_bytes": done.source_size,
        "layout": done.layout,
        "modules": len(done.adapter),
        "N": done.adapter.N,
        "bank": done.bank,
        "base_model": done.adapter.base_model,
    }


def _lines(done: Packed, source: str, output: str) -> Iterator[str]:
    from vbfmt.cli.show import counted, size, than

    yield (
        f"{output}: {size(done.size)}, {than(done.size, done.source_size)} {source} "
        f"({size(done.source_size)})"
    )
    if done.bank is not None:
        yield f"external bank: {done.bank}, {size(done.adapter.bank.nbytes)}"
    modules = counted(len(done.adapter), "module")
    yield f"{modules}, {done.adapter.N} sub-vectors, read as {done.title}"
    yield done.digest
    yield "this digest is of the content; sha256sum of the file prints another value"


def _require_stream_is_alone(card: bool, as_json: bool) -> None:
    if card or as_json:
        option = "--card" if card else "--json"
        raise click.UsageError(
            f"{option} cannot be used with -o -, which writes the file to standard output"
        )
    if sys.stdout.isatty():
        raise click.UsageError("-o - would write bytes to the terminal: redirect the output")
