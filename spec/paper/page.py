"""Write the page that compares the paper's parameter counts with ours: ``python -m
spec.paper.page``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from spec.paper import parameters as paper
from vbfmt.estimate import methods
from vbfmt.estimate.architecture import linears
from vbfmt.estimate.models import PRESETS
from vbfmt.estimate.shape import Shape
from vbfmt.packed import dumps

_HEAD = """\
# The paper's parameter counts, counted again

Every figure that the *# Params* columns of the VB-LoRA paper's Tables 1 to 4 print for an adapter,
beside our own count and the bytes that a packed file of that shape takes.
`python -m spec.paper.page` writes this page; a test compares the two. Full fine-tuning is left out:
those are the models' own sizes.

**How to read it.** *Printed* is in millions of float32-equivalents. *Our count* of VB-LoRA is
Sec. 3.4 taken literally: `hb` for the bank, k − 1 float32 weights per sub-vector, and k indices, of
which four count as one number if h ≤ 256 (8 bits), two if h is larger (16 bits). That is also what
our files store. *Counted as* names every convention, among 8-, 16-, 32- and 64-bit indices with
k − 1 or k weights, whose count rounds to the printed figure. *On disk* is the length of a real
packed file of that shape with random content, header and padding included; for the other methods,
four bytes per number.
"""

_TAIL = """\
## What stands out

* **The index width differs between the tables.** Table 1 (all layers) and GPT-2 medium count 8-bit
  indices, as Sec. 3.4 says. GPT-2 large (h = 350) and Table 4 (h = 2048) give what 32-bit indices
  give, or 16-bit ones with both weights stored: at k = 2 the two have the same count. Table 3 fits
  only 64-bit indices with all k weights, which is what a top-k in PyTorch returns as it stands. Our
  files are smaller than what Tables 3 and 4 and GPT-2 large print.
* **The two query-and-value rows of Table 1 fit no convention.** Sec. 3.4's formula gives
  {base_full:,} and {large_full:,}, so 0.024M and 0.025M. The printed 0.023M and 0.024M are what
  half as many sub-vectors would take ({base_half:,} and {large_half:,}: rank 2, or one of the
  factors A and B), though Table 7 says rank 4 and the rows of all layers need rank 4 to fit. For
  the base model alone, cutting digits off instead of rounding would do; for the large one it would
  not.
* **GPT-2's query, key and value count as three matrices**, although the model holds them as one
  layer, `c_attn`. As one layer, PEFT's way, medium has {medium_fused:,} sub-vectors instead of
  {medium_rows:,}, and the count would be {medium_fused_count:,}.
* **LoRA on GPT-2 fits no rank.** The paper takes these figures from the LoRA paper. On query and
  value, rank 3 gives {lora_medium_3:,} and {lora_large_3:,}, rank 4 {lora_medium_4:,} and
  {lora_large_4:,}, rank 5 {lora_medium_5:,} and {lora_large_5:,}.
* **Tied-LoRA** is counted as one trained pair A, B per kind of layer, and per layer the two scaling
  vectors; its rank is the one whose count comes nearest. The rows of query and value fit; of those
  of all layers the base model's fits no rank, and the large model's would fit cut off, not rounded.
* **VeRA on Llama 2** fits rank 1024; at rank 256, Llama 2 7B would have {vera_256:,} numbers.
"""

_COLUMNS = (
    "Table",
    "Model",
    "Method",
    "Shape",
    "Printed",
    "Our count",
    "Counted as",
    "On disk (bytes)",
)


def page() -> str:
    """Return the whole page. It builds and packs an adapter for every row, in less than a
    second."""
    rows = paper.rows()
    return "\n".join([_HEAD, *_table(rows), "", _TAIL.format(**_figures(rows))])


def on_disk(row: paper.Row) -> int:
    """Return the size in bytes: of a packed file, which is built, or four bytes per number for
    other methods."""
    if row.shape is None:
        return 4 * row.count
    return len(dumps(paper.random_adapter(row.layers, row.shape)))


def _table(rows: tuple[paper.Row, ...]) -> Iterator[str]:
    yield _line(_COLUMNS)
    yield "|---|---|---|---|---:|---:|---|---:|"
    for row in rows:
        yield _line(
            (
                str(row.table),
                row.model,
                row.method,
                _shape(row),
                f"{row.printed}M",
                f"{row.count:,}",
                _counted_as(row),
                f"{on_disk(row):,}",
            )
        )


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _shape(row: paper.Row) -> str:
    if row.shape is None:
        return f"r {row.size}"
    shape = row.shape
    return f"h {shape.h}, b {shape.b}, k {shape.k}, r {shape.r}, N {row.rows:,}"


def _counted_as(row: paper.Row) -> str:
    if not row.fits:
        return "**none fits**"
    return "; or ".join(str(convention) for convention in row.conventions) or "its own count"


def _figures(rows: tuple[paper.Row, ...]) -> dict[str, int]:
    by_name = {(row.model, row.method): row for row in rows}
    base = by_name["roberta-base", "VB-LoRA qv"]
    large = by_name["roberta-large", "VB-LoRA qv"]
    medium = by_name["gpt2-medium", "VB-LoRA"]
    fused, shape = linears(PRESETS["gpt2-medium"]), Shape(256, 256)
    return {
        "base_full": base.count,
        "base_half": half(base),
        "large_full": large.count,
        "large_half": half(large),
        "medium_rows": medium.rows,
        "medium_fused": shape.subvectors(fused),
        "medium_fused_count": paper.CONVENTIONS[0].count(shape, shape.subvectors(fused)),
        **_lora_on_gpt2(by_name),
        "vera_256": methods.vera(by_name["llama-2-7b", "VeRA"].layers, 256),
    }


def _lora_on_gpt2(rows: Mapping[tuple[str, str], paper.Row]) -> dict[str, int]:
    return {
        f"lora_{size}_{rank}": methods.lora(rows[f"gpt2-{size}", "LoRA"].layers, rank)
        for size in ("medium", "large")
        for rank in (3, 4, 5)
    }


def half(row: paper.Row) -> int:
    """Return the count of Sec. 3.4 for a VB-LoRA row with half the sub-vectors."""
    if row.shape is None:
        raise ValueError("not a row of VB-LoRA")
    return paper.CONVENTIONS[0].count(row.shape, row.rows // 2)


if __name__ == "__main__":
    print(page(), end="")
