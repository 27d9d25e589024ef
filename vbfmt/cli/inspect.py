"""``vbfmt inspect``: what a packed file holds."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vbfmt.adapter import Adapter
    from vbfmt.summary import Summary


@click.command("inspect")
@click.argument("file", type=click.Path())
@click.option("--modules", is_flag=True, help="List every module.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def command(file: str, modules: bool, as_json: bool) -> None:
    """What FILE holds: sizes by part, h b k r N, base model, modules, digest."""
    from vbfmt.cli import show
    from vbfmt.packed import digest, load
    from vbfmt.summary import summarize

    adapter = load(file)
    summary = summarize(adapter, show.weight_of(file))
    name = digest(adapter)
    if as_json:
        show.as_json(_as_dict(adapter, summary, file, name))
        return
    for line in [*_facts(adapter, summary, file, name), *_groups(summary)]:
        click.echo(line)
    if modules:
        for module in adapter:
            click.echo(
                f"  {module.name}  {module.in_features} → {module.out_features}, "
                f"rank {module.rank}, {module.rows(adapter.b)} rows"
            )


def _facts(adapter: Adapter, summary: Summary, file: str, digest: str) -> list[str]:
    from vbfmt.cli.show import size, times
    from vbfmt.errors import printable

    ranks = sorted({module.rank for module in adapter})
    revision = f" at {adapter.base_revision}" if adapter.base_revision else ""
    parts = [
        ("vector bank", summary.bank, f"{adapter.h} × {adapter.b} float32"),
        ("indices", summary.indices, f"{adapter.N} × {adapter.k} {adapter.indices.dtype.name}"),
        ("weights", summary.weights, f"{adapter.N} × {adapter.k - 1} float32"),
        ("other tensors", summary.tensors, _few(list(adapter.tensors))),
    ]
    named = sum(length for _, length, _ in parts)
    parts.append(("header, padding", summary.file - named, ""))
    return [
        f"{printable(file)}: {size(summary.file)}, "
        f"{times(summary.logits / summary.file)} smaller than its logits "
        f"({size(summary.logits)}), {times(summary.lora / summary.file)} smaller than LoRA "
        f"({size(summary.lora)})",
        f"  digest       {digest}",
        f"  base model   {printable(adapter.base_model or 'not named')}{printable(revision)}",
        f"  h {adapter.h}, b {adapter.b}, k {adapter.k}, r {', '.join(map(str, ranks))}, "
        f"N {adapter.N}",
        *(
            f"  {name:<16}{size(length):>12}  {what}".rstrip()
            for name, length, what in parts
            if length
        ),
    ]


def _groups(summary: Summary) -> list[str]:
    from vbfmt.errors import printable

    total = sum(group.modules for group in summary.groups)
    width = max(len(group.kind) for group in summary.groups)
    return [
        f"{total} modules:",
        *(
            f"  {printable(g.kind):<{width}}  {g.modules:>4} of {g.in_features} → "
            f"{g.out_features}, rank {g.rank}, {g.rows} rows"
            for g in summary.groups
        ),
    ]


def _few(names: list[str]) -> str:
    from vbfmt.errors import printable

    return printable(", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else ""))


def _as_dict(adapter: Adapter, summary: Summary, file: str, digest: str) -> dict[str, Any]:
    return {
        "file": file,
        "digest": digest,
        "base_model": adapter.base_model,
        "base_revision": adapter.base_revision,
        "h": adapter.h,
        "b": adapter.b,
        "k": adapter.k,
        "N": adapter.N,
        "bytes": {
            key: value for key, value in dataclasses.asdict(summary).items() if key != "groups"
        },
        "modules": [dataclasses.asdict(module) for module in adapter],
        "tensors": {
            name: {"dtype": tensor.dtype, "shape": list(tensor.shape)}
            for name, tensor in adapter.tensors.items()
        },
        "metadata": dict(adapter.metadata),
    }
