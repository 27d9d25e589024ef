"""``vbfmt inspect``: what a packed file holds."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from vbfmt.cli import arguments as args
from vbfmt.cli import show
from vbfmt.cli.command import Command

if TYPE_CHECKING:
    from vbfmt.adapter import Adapter
    from vbfmt.analysis.summary import Summary


@click.command(
    "inspect",
    cls=Command,
    examples=(
        "vbfmt inspect adapter.vblora",
        "vbfmt inspect me/adapter --modules",
        "vbfmt inspect adapter.vblora --json | jq .digest",
    ),
)
@click.argument("file", type=args.PACKED)
@args.revision_option("FILE")
@click.option("--modules", is_flag=True, help="List every module.")
@args.BANKS
@args.JSON
def command(
    file: str, revision: str | None, modules: bool, banks: tuple[str, ...], as_json: bool
) -> None:
    """Show what FILE holds: sizes, h b k r N, base model, use of the bank, modules, digest.

    FILE is a packed file, - for standard input, or owner/name for a repository on the Hugging Face
    Hub if there is no such path. The output is a page on a terminal and plain lines in a pipe.
    """
    from vbfmt.analysis.summary import summarize
    from vbfmt.cli.packed_input import path_of
    from vbfmt.packed import load_with_form

    path = path_of(file, revision=revision)
    adapter, digest, form = load_with_form(path, banks=banks)
    external = form == "external"
    summary = summarize(adapter, os.path.getsize(path), external_bank=external)
    if as_json:
        show.as_json({**_as_dict(adapter, summary, file, digest), "sha256": show.sha256(path)})
        return
    if show.verbosity() < 0:
        return
    if _on_terminal():
        from vbfmt.cli.inspect_page import print_page

        print_page(adapter, summary, file, digest)
    else:
        from vbfmt.cli.inspect_lines import lines

        for line in lines(adapter, summary, file, digest):
            show.say(line)
        show.say(
            f"  sha256sum       {show.sha256(path)} (of the file; the digest is of its content)"
        )
    if modules:
        from vbfmt.cli.inspect_lines import module_lines

        for line in module_lines(adapter):
            show.say(line)


def _on_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _as_dict(adapter: Adapter, summary: Summary, file: str, digest: str) -> dict[str, Any]:
    numbers = dataclasses.asdict(dataclasses.replace(summary, groups=()))
    del numbers["groups"]
    sizes = numbers.pop("sizes")
    external = sizes.pop("external_bank")
    return {
        "file": file,
        "digest": digest,
        "base_model": adapter.base_model,
        "base_revision": adapter.base_revision,
        "h": adapter.h,
        "b": adapter.b,
        "k": adapter.k,
        "N": adapter.N,
        "bank": "external" if external else "embedded",
        "bytes": sizes,
        "balance": numbers.pop("balance"),
        "kinds": (vars(group) for group in summary.groups),
        **numbers,
        "modules": (vars(module) for module in adapter),
        "tensors": {
            name: {"dtype": tensor.dtype, "shape": list(tensor.shape)}
            for name, tensor in adapter.tensors.items()
        },
        "metadata": dict(adapter.metadata),
    }
