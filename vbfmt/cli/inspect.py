"""``vbfmt inspect``: what a packed file holds."""

from __future__ import annotations

import dataclasses
import os
import sys
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
    """What FILE holds: sizes by part, h b k r N, base model, how the bank is used, modules, digest.

    A page on a terminal; plain lines in a pipe.
    """
    from vbfmt.cli import show
    from vbfmt.packed import digest, load
    from vbfmt.summary import summarize

    adapter = load(file)
    summary = summarize(adapter, show.weight_of(file))
    name = digest(adapter)
    if as_json:
        show.as_json(_as_dict(adapter, summary, file, name))
        return
    if _on_terminal():
        from vbfmt.cli.inspect_page import print_page

        print_page(adapter, summary, file, name)
    else:
        for line in [
            *_facts(adapter, summary, file, name),
            *_use(summary, adapter.h),
            *_groups(summary),
        ]:
            click.echo(line)
    if modules:
        for line in _modules(adapter):
            click.echo(line)


def _on_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _facts(adapter: Adapter, summary: Summary, file: str, digest: str) -> list[str]:
    from vbfmt.cli.show import size, times
    from vbfmt.errors import printable

    sizes = summary.sizes
    revision = f" at {adapter.base_revision}" if adapter.base_revision else ""
    return [
        f"{printable(file)}: {size(sizes.file)}, "
        f"{times(sizes.logits / sizes.file)} smaller than its logits "
        f"({size(sizes.logits)}), {times(sizes.lora / sizes.file)} smaller than LoRA "
        f"({size(sizes.lora)})",
        f"  digest       {digest}",
        f"  base model   {printable((adapter.base_model or 'not named') + revision)}",
        f"  h {adapter.h}, b {adapter.b}, k {adapter.k}, r {ranks(adapter)}, N {adapter.N}",
        *(
            f"  {name:<16}{size(length):>12}  {what}".rstrip()
            for name, length, what in parts(adapter, summary)
            if length
        ),
    ]


def _use(summary: Summary, h: int) -> list[str]:
    use, weights = summary.balance, summary.largest_weights
    most_used = ", ".join(f"{vector} ({times} times)" for vector, times in use.most_used)
    shares = ", ".join(
        f"{label} {share:.0%}"
        for label, share in zip(ranges(weights), shares_of(weights), strict=True)
    )
    return [
        f"  unused vectors  {use.unused}",
        f"  times selected  {use.least} to {use.most}, mean {use.mean:.4g}, spread "
        f"{use.spread:.3g} (drawn at random: {use.chance:.3g})",
        f"  most used       {most_used}",
        f"  load balance    effectively {use.effective:.4g} of {h} vectors (e^entropy)",
        f"  largest weight  mean {summary.mean_largest_weight:.3g}; {shares}",
    ]  # fmt: skip


def _groups(summary: Summary) -> list[str]:
    from vbfmt.errors import printable

    total = sum(group.modules for group in summary.groups)
    width = max(len(printable(group.kind)) for group in summary.groups)
    return [
        f"{total} modules:",
        *(
            f"  {printable(g.kind):<{width}}  {g.modules:>4} of {g.in_features} → "
            f"{g.out_features}, rank {g.rank}, {g.rows} rows, {g.vectors} vectors, "
            f"mean largest weight {g.largest_weight:.3f}"
            for g in summary.groups
        ),
    ]


def _modules(adapter: Adapter) -> list[str]:
    from vbfmt.errors import printable

    return [
        f"  {printable(module.name)}  {module.in_features} → {module.out_features}, "
        f"rank {module.rank}, {module.rows(adapter.b)} rows"
        for module in adapter
    ]


def ranks(adapter: Adapter) -> str:
    """The ranks that occur."""
    return ", ".join(map(str, sorted({module.rank for module in adapter})))


def parts(adapter: Adapter, summary: Summary) -> list[tuple[str, int, str]]:
    """Name, bytes and content of the file's parts."""
    sizes = summary.sizes
    return [
        ("vector bank", sizes.bank, f"{adapter.h} × {adapter.b} float32"),
        ("indices", sizes.indices, f"{adapter.N} × {adapter.k} {adapter.indices.dtype.name}"),
        ("weights", sizes.weights, f"{adapter.N} × {adapter.k - 1} float32"),
        ("other tensors", sizes.tensors, _few(list(adapter.tensors))),
        ("header, padding", sizes.rest, ""),
    ]


def ranges(histogram: Any) -> list[str]:
    """The bins of a histogram of fractions, as text."""
    edges = [f"{edge:.2f}".rstrip("0").rstrip(".") for edge in histogram.edges]
    return [f"{low}–{high}" for low, high in zip(edges, edges[1:], strict=False)]


def shares_of(histogram: Any) -> list[float]:
    """Each bin's share of all values."""
    total = sum(histogram.counts) or 1
    return [count / total for count in histogram.counts]


def _few(names: list[str]) -> str:
    from vbfmt.errors import printable

    return printable(", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else ""))


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
