"""The parameter columns of the paper's Tables 1 to 4, counted again.

The paper prints rounded float32-equivalents, and does not say for every table how an index is
counted. So each VB-LoRA row is counted in every plausible way, and the row lists the ways that give
the printed figure. For some rows, no way does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

import numpy as np

from vbfmt._math.admixture import canonical_rows
from vbfmt.adapter import Adapter
from vbfmt.estimate import methods
from vbfmt.estimate.architecture import Linear, choose, linears
from vbfmt.estimate.models import PRESETS
from vbfmt.estimate.shape import Shape
from vbfmt.module import Module


@dataclass(frozen=True)
class Convention:
    """A way to count a sub-vector's selection in float32-equivalents.

    Attributes:
        index_bits: bits of each of the k indices.
        all_weights: whether k weights are counted, not k − 1.
    """

    index_bits: int
    all_weights: bool

    def count(self, shape: Shape, rows: int) -> int:
        """Return the count for the bank, and the indices and weights of `rows` sub-vectors, rounded
        up."""
        weights = shape.k if self.all_weights else shape.k - 1
        return shape.h * shape.b + rows * weights + -(-rows * shape.k * self.index_bits // 32)

    def __str__(self) -> str:
        return f"{self.index_bits}-bit indices, {'k' if self.all_weights else 'k − 1'} weights"


CONVENTIONS = tuple(Convention(bits, full) for full in (False, True) for bits in (8, 16, 32, 64))


@dataclass(frozen=True)
class Row:
    """One parameter count in the paper.

    Attributes:
        table: number of the table, 1 to 4.
        model, method: as the paper names them.
        printed: the figure, in millions, with its decimals.
        layers: the adapted layers.
        shape: h, b and k for VB-LoRA, else None.
        count: our count; for VB-LoRA with the formula of Sec. 3.4 (8 bits if h ≤ 256, else 16).
        size: the rank, for other methods.
    """

    table: int
    model: str
    method: str
    printed: str
    layers: tuple[Linear, ...]
    count: int
    shape: Shape | None = None
    size: int | None = None

    @property
    def rows(self) -> int:
        """Return N, the number of sub-vectors."""
        return self.shape.subvectors(self.layers) if self.shape else 0

    @property
    def conventions(self) -> list[Convention]:
        """Return the conventions that give the printed figure of a VB-LoRA row."""
        if self.shape is None:
            return []
        return [c for c in CONVENTIONS if self.gives(c.count(self.shape, self.rows))]

    @property
    def fits(self) -> bool:
        """Return whether a count gives the printed figure."""
        return bool(self.conventions) if self.shape else self.gives(self.count)

    def gives(self, count: int) -> bool:
        """Return whether `count`, rounded to the printed decimals, is the printed figure."""
        printed = Decimal(self.printed)
        return (Decimal(count) / 1_000_000).quantize(printed, ROUND_HALF_UP) == printed


def random_adapter(layers: Sequence[Linear], shape: Shape, seed: int = 0) -> Adapter:
    """Return an adapter of this shape with random content. Its file is as long as that of a trained
    one."""
    generator = np.random.default_rng(seed)
    rows = {}
    for layer in layers:
        module = Module(
            layer.name, layer.in_features, layer.out_features, shape.r, layer.fan_in_fan_out
        )
        count = module.rows(shape.b)
        first = generator.integers(shape.h, size=(count, 1))
        steps = generator.integers(1, max(2, shape.h // shape.k), size=(count, shape.k - 1))
        indices = (first + np.cumsum(np.pad(steps, ((0, 0), (1, 0))), axis=1)) % shape.h
        weights = generator.dirichlet(np.ones(shape.k), size=count)
        rows[module] = canonical_rows(indices, weights, shape.h)
    bank = generator.uniform(-0.02, 0.02, size=(shape.h, shape.b)).astype(np.float32)
    return Adapter.from_rows(bank, rows)


def rows() -> tuple[Row, ...]:
    """Return every row of Tables 1 to 4 that gives the parameter count of an adapter, in the
    paper's order."""
    return (*_table_1(), *_table_2(), *_table_3(), *_table_4())


def _table_1() -> list[Row]:
    shape = Shape(90, 256)
    found = []
    for model, lora, vera_rank, figures in (
        ("roberta-base", "0.295", 1024, ("0.043", "0.043", "0.023", "0.157", "0.109", "0.027")),
        ("roberta-large", "0.786", 256, ("0.061", "0.066", "0.024", "0.258", "0.239", "0.033")),
    ):
        tied_ranks = {"roberta-base": (8, 2), "roberta-large": (4, 1)}[model]
        every = linears(PRESETS[model])
        found.append(_other(methods.lora, 1, model, "LoRA qv", lora, choose(every, "qv"), 8))
        for which, tied_rank, printed in (
            ("qv", tied_ranks[0], figures[:3]),
            ("all", tied_ranks[1], figures[3:]),
        ):
            layers = choose(every, which)
            found += [
                _other(methods.vera, 1, model, f"VeRA {which}", printed[0], layers, vera_rank),
                _other(
                    methods.tied_lora, 1, model, f"Tied-LoRA {which}", printed[1], layers, tied_rank
                ),
                _vblora(1, model, f"VB-LoRA {which}", printed[2], layers, shape),
            ]
    return found


def _table_2() -> list[Row]:
    found = []
    for model, h, lora, vera, vblora in (
        ("gpt2-medium", 256, "0.35", "0.098", "0.076"),
        ("gpt2-large", 350, "0.77", "0.17", "0.13"),
    ):
        every = _with_separate_projections(linears(PRESETS[model]))
        layers = choose(every, "q,v")
        found += [
            _other(methods.lora, 2, model, "LoRA", lora, layers, 4),
            _other(methods.vera, 2, model, "VeRA", vera, layers, 1024),
            _vblora(2, model, "VB-LoRA", vblora, every, Shape(h, 256)),
        ]
    return found


def _table_3() -> list[Row]:
    found = []
    for model, rank, lora, vera, vblora in (
        ("llama-2-7b", 4, "159.9", "1.6", "0.8"),
        ("llama-2-13b", 6, "250.3", "2.4", "1.1"),
    ):
        layers = linears(PRESETS[model])
        found += [
            _other(methods.lora, 3, model, "LoRA", lora, layers, 64),
            _other(methods.vera, 3, model, "VeRA", vera, layers, 1024),
            _vblora(3, model, "VB-LoRA", vblora, layers, Shape(2048, 256, r=rank)),
        ]
    return found


def _table_4() -> list[Row]:
    found = []
    for model, lora, xs, vblora in (
        ("mistral-7b", "168", "0.92", "0.65"),
        ("gemma-7b", "200", "0.80", "0.67"),
    ):
        layers = linears(PRESETS[model])
        found += [
            _other(methods.lora, 4, model, "LoRA", lora, layers, 64),
            _other(methods.lora_xs, 4, model, "LoRA-XS", xs, layers, 64),
            _vblora(4, model, "VB-LoRA", vblora, layers, Shape(2048, 256)),
        ]
    return found


def _vblora(
    table: int, model: str, method: str, printed: str, layers: tuple[Linear, ...], shape: Shape
) -> Row:
    count = methods.float32_equivalents(shape, shape.subvectors(layers))
    return Row(table, model, method, printed, layers, round(count), shape)


def _other(
    count: Callable[[Sequence[Linear], int], int],
    table: int,
    model: str,
    method: str,
    printed: str,
    layers: tuple[Linear, ...],
    rank: int,
) -> Row:
    return Row(table, model, method, printed, layers, count(layers, rank), size=rank)


def _with_separate_projections(layers: Sequence[Linear]) -> tuple[Linear, ...]:
    """Split GPT-2's fused layer for query, key and value into the three matrices that the paper
    counts."""
    found: list[Linear] = []
    for layer in layers:
        if layer.leaf != "c_attn":
            found.append(layer)
            continue
        block = layer.name.rpartition(".")[0]
        found += [
            Linear(f"{block}.{part}", layer.in_features, layer.in_features, layer.fan_in_fan_out)
            for part in "qkv"
        ]
    return tuple(found)
