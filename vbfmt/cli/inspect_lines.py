"""The plain lines that ``vbfmt inspect`` prints into a pipe, one fact each."""

from __future__ import annotations

import itertools

from vbfmt.adapter import Adapter
from vbfmt.analysis.summary import Histogram, Sizes, Summary
from vbfmt.cli.show import counted, size, than
from vbfmt.errors import few, printable


def lines(adapter: Adapter, summary: Summary, file: str, digest: str) -> list[str]:
    """Return the lines that describe an adapter."""
    return [*_facts(adapter, summary, file, digest), *_use(summary, adapter.h), *_groups(summary)]


def _facts(adapter: Adapter, summary: Summary, file: str, digest: str) -> list[str]:
    sizes = summary.sizes
    revision = f" at {adapter.base_revision}" if adapter.base_revision else ""
    return [
        f"{printable(file)}: {files(sizes)}, "
        f"{than(sizes.all_files, sizes.logits)} its logits ({size(sizes.logits)}), "
        f"{than(sizes.all_files, sizes.lora)} LoRA "
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
    most_used = ", ".join(f"{vector} ({counted(times, 'time')})" for vector, times in use.most_used)
    shares = ", ".join(
        f"{label} {share:.0%}"
        for label, share in zip(ranges(weights), shares_of(weights), strict=True)
    )
    return [
        f"  unused vectors  {use.unused}",
        f"  times selected  {use.least} to {use.most}, mean {use.mean:.4g}, spread "
        f"{use.spread:.3g} (if drawn at random, {use.chance:.3g})",
        f"  most used       {most_used}",
        f"  load balance    effectively {use.effective:.4g} of {counted(h, 'vector')} (e^entropy)",
        f"  largest weight  mean {summary.mean_largest_weight:.3g}; {shares}",
    ]  # fmt: skip


def _groups(summary: Summary) -> list[str]:
    total = sum(group.modules for group in summary.groups)
    width = max(len(printable(group.kind)) for group in summary.groups)
    return [
        f"{counted(total, 'module')}:",
        *(
            f"  {printable(g.kind):<{width}}  {g.modules:>4} of {g.in_features} → "
            f"{g.out_features}, rank {g.rank}, {counted(g.rows, 'sub-vector')}, "
            f"{counted(g.vectors, 'vector')}, "
            f"mean largest weight {g.largest_weight:.3f}"
            for g in summary.groups
        ),
    ]


def module_lines(adapter: Adapter) -> list[str]:
    """Return a line for each module."""
    return [
        f"  {printable(module.name)}  {module.in_features} → {module.out_features}, "
        f"rank {module.rank}, {counted(module.rows(adapter.b), 'sub-vector')}"
        for module in adapter
    ]


def ranks(adapter: Adapter) -> str:
    """Return the distinct ranks of the modules, as text."""
    return ", ".join(map(str, sorted({module.rank for module in adapter})))


def files(sizes: Sizes) -> str:
    """Return the size of the packed file and of its external bank, as text."""
    bank = f" and an external bank of {size(sizes.bank)}" if sizes.external_bank else ""
    return f"{size(sizes.file)}{bank}"


def parts(adapter: Adapter, summary: Summary) -> list[tuple[str, int, str]]:
    """Return name, length in bytes and content of each part of the file and its external bank."""
    sizes = summary.sizes
    bank = "external bank" if sizes.external_bank else "vector bank"
    return [
        (bank, sizes.bank, f"{adapter.h} × {adapter.b} float32"),
        ("indices", sizes.indices, f"{adapter.N} × {adapter.k} {adapter.indices.dtype.name}"),
        ("weights", sizes.weights, f"{adapter.N} × {adapter.k - 1} float32"),
        ("other tensors", sizes.tensors, printable(few(list(adapter.tensors)))),
        ("header, padding", sizes.rest, ""),
    ]


def ranges(histogram: Histogram) -> list[str]:
    """Return the bins of a histogram of fractions, as text."""
    edges = [f"{edge:.2f}".rstrip("0").rstrip(".") for edge in histogram.edges]
    return [f"{low}–{high}" for low, high in itertools.pairwise(edges)]


def shares_of(histogram: Histogram) -> list[float]:
    """Return each bin's share of all values."""
    total = sum(histogram.counts) or 1
    return [count / total for count in histogram.counts]
