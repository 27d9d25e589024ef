"""The page that ``vbfmt inspect`` prints on a terminal.

Colours are the terminal's own sixteen, which suit light and dark backgrounds; ``NO_COLOR`` turns
them off. Names from a file are printed as plain text: markup in them has no effect.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich.bar import Bar
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vbfmt.adapter import Adapter
from vbfmt.analysis.summary import Summary
from vbfmt.cli.inspect_lines import files, parts, ranges, ranks
from vbfmt.cli.show import counted, size, terminal_width, than
from vbfmt.errors import printable

_WIDE = 100
_NARROW = 70
_COLUMNS = {
    "modules": "",
    "rank": "",
    "sub-vectors": "",
    "vectors": "vectors: how many of the bank are selected",
    "weight": "weight: mean largest weight",
}
"""Columns of the table of kinds, with their footnotes."""
_BAR = 26
_ACCENT, _SECOND, _THIRD = "blue", "magenta", "green"


def print_page(
    adapter: Adapter, summary: Summary, file: str, digest: str, console: Console | None = None
) -> None:
    """Print the page, by default to standard output."""
    # Rich would take a width of 0 from the environment, and print nothing.
    console = console or Console(highlight=False, markup=False, emoji=False, width=terminal_width())
    console.print(_head(adapter, summary, file))
    # Do not break the digest into lines, so that it can be copied as one line.
    named = Text.assemble("  ", ("digest", "dim"), "      ", digest)
    whole = named if named.cell_len <= console.width else Text(f"  {digest}")
    console.print(whole, soft_wrap=True)
    console.print(
        _on_disk(adapter, summary, console.width),
        _bank(summary, adapter.h, console.width),
        _kinds(adapter, summary, console.width),
    )


def _head(adapter: Adapter, summary: Summary, file: str) -> RenderableType:
    sizes = summary.sizes
    size_text = Text.assemble(
        (files(sizes), f"bold {_ACCENT}"),
        f", {than(sizes.all_files, sizes.logits)} its logits, "
        f"{than(sizes.all_files, sizes.lora)} LoRA",
    )
    revision = f" at {adapter.base_revision}" if adapter.base_revision else ""
    facts = _grid()
    for name, value in (
        ("size", size_text),
        ("base model", printable((adapter.base_model or "not named") + revision)),
        (
            "shape",
            f"h {adapter.h} · b {adapter.b} · k {adapter.k} · r {ranks(adapter)} · N {adapter.N:,}",
        ),
    ):
        facts.add_row(
            Text(name, "dim"), value if isinstance(value, Text) else Text(value, overflow="fold")
        )
    return Group(Text(), Text(printable(file), "bold"), Padding(facts, (0, 0, 0, 2)))


def _on_disk(adapter: Adapter, summary: Summary, width: int) -> RenderableType:
    named = [part for part in parts(adapter, summary) if part[1]]
    largest = max(length for _, length, _ in named)
    grid = _grid()
    for name, length, what in named:
        bar = Bar(largest, 0, length, width=_BAR, color=_ACCENT)
        content = Text(what, "dim", no_wrap=True, overflow="ellipsis")
        narrow = width < _NARROW
        grid.add_row(
            Text(name),
            Text(size(length), justify="right"),
            *([] if narrow else [bar]),
            Text(f"{length / summary.sizes.all_files:.0%}", "dim", justify="right"),
            *([] if narrow else [content]),
        )
    return _section("On disk", grid)


def _bank(summary: Summary, h: int, width: int) -> RenderableType:
    use, weights = summary.balance, summary.largest_weights
    edges = itertools.pairwise(summary.usage.edges)
    spread = _histogram([_span(*bin) for bin in edges], summary.usage.counts, _SECOND)
    used = f"all {h} vectors are used" if not use.unused else f"{use.unused} of {h} are unused"
    most_used = ", ".join(f"{vector} ({count}×)" for vector, count in use.most_used[:3])
    left = _section(
        "Times that a vector is selected",
        spread,
        f"{used}; mean {use.mean:.4g} ± {use.spread:.3g}",
        f"if drawn at random, ± {use.chance:.3g}",
        f"effectively {use.effective:.4g} of {counted(h, 'vector')} (e^entropy)",
        f"most used: {most_used}",
    )
    right = _section(
        "Largest weight of a sub-vector",
        _histogram(ranges(weights), weights.counts, _THIRD),
        f"mean {summary.mean_largest_weight:.3g}; 1 means one vector alone",
    )
    if width < _WIDE:
        return Group(left, right)
    columns = Table.grid(padding=(0, 4))
    columns.add_row(left, right)
    return columns


def _kinds(adapter: Adapter, summary: Summary, width: int) -> RenderableType:
    table = Table(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, header_style="dim"
    )
    table.add_column("kind", overflow="fold")
    # On a narrow terminal, leave out columns and do not shorten the names of kinds.
    titles = ["modules", "vectors"] if width < _NARROW else list(_COLUMNS)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for group in summary.groups:
        modules = str(group.modules)
        if width >= _NARROW:
            modules += f" of {group.in_features} → {group.out_features}"
        values = {
            "modules": modules,
            "rank": str(group.rank),
            "sub-vectors": f"{group.rows:,}",
            "vectors": str(group.vectors),
            "weight": f"{group.largest_weight:.3f}",
        }
        table.add_row(Text(printable(group.kind)), *(values[title] for title in titles))
    notes = [_COLUMNS[title] for title in titles if _COLUMNS[title]]
    return _section(counted(len(adapter), "module"), table, "; ".join(notes))


def _section(title: str, content: RenderableType, *notes: str) -> RenderableType:
    lines = [Text(note, "dim") for note in notes]
    return Group(Text(), Text(title, "bold"), Padding(Group(content, *lines), (0, 0, 0, 2)))


def _histogram(names: Sequence[str], counts: Sequence[int], colour: str) -> Table:
    grid = _grid()
    for name, count in zip(names, counts, strict=True):
        grid.add_row(
            Text(name, justify="right"),
            Bar(max(counts), 0, count, width=_BAR, color=colour),
            Text(f"{count:,}", "dim", justify="right"),
        )
    return grid


def _span(low: float, high: float) -> str:
    first, last = int(low), int(high) - 1
    return str(first) if first == last else f"{first}–{last}"


def _grid() -> Table:
    return Table.grid(padding=(0, 2))
