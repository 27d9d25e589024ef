"""``vbfmt inspect``: what a packed file holds."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from vbfmt.cli.arguments import BANKS, PATH

if TYPE_CHECKING:
    from vbfmt.adapter import Adapter
    from vbfmt.analysis.summary import Summary


@click.command("inspect")
@click.argument("file", type=PATH)
@click.option("--modules", is_flag=True, help="List every module.")
@BANKS
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def command(file: str, modules: bool, banks: tuple[str, ...], as_json: bool) -> None:
    """What FILE holds: sizes by part, h b k r N, base model, how the bank is used, modules, digest.

    A page on a terminal; plain lines in a pipe. Errors are a line on stderr, with --json too.
    """
    from vbfmt.analysis.summary import summarize
    from vbfmt.cli import show
    from vbfmt.packed import load_with_digest

    adapter, name = load_with_digest(file, banks=banks)
    summary = summarize(adapter, show.weight_of([file]))
    if as_json:
        show.as_json(_as_dict(adapter, summary, file, name))
        return
    if _on_terminal():
        from vbfmt.cli.inspect_page import print_page

        print_page(adapter, summary, file, name)
    else:
        from vbfmt.cli.inspect_lines import lines

        for line in lines(adapter, summary, file, name):
            show.say(line)
    if modules:
        from vbfmt.cli.inspect_lines import module_lines

        for line in module_lines(adapter):
            show.say(line)


def _on_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _as_dict(adapter: Adapter, summary: Summary, file: str, digest: str) -> dict[str, Any]:
    numbers = dataclasses.asdict(summary)
    return {
        "file": file,
        "digest": digest,
        "base_model": adapter.base_model,
        "base_revision": adapter.base_revision,
        "h": adapter.h,
        "b": adapter.b,
        "k": adapter.k,
        "N": adapter.N,
        "bytes": numbers.pop("sizes"),
        "balance": numbers.pop("balance"),
        "kinds": numbers.pop("groups"),
        **numbers,
        "modules": [dataclasses.asdict(module) for module in adapter],
        "tensors": {
            name: {"dtype": tensor.dtype, "shape": list(tensor.shape)}
            for name, tensor in adapter.tensors.items()
        },
        "metadata": dict(adapter.metadata),
    }
