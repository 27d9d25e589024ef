"""Count the parameters that each method trains and stores for the same layers.

They are counted as in the methods' papers: LoRA (Hu et al. 2021), VeRA (Kopiczko et al. 2024),
Tied-LoRA (Renduchintala et al. 2024), LoRA-XS (Bałazy et al. 2024), Uni-LoRA (Li et al. 2025),
VB-LoRA (Sec. 3.4). For methods other than VB-LoRA, the size on disk is that of the stored
parameters as float32, without the overhead of a file format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vbfmt._format import container, header, rules
from vbfmt._math.admixture import index_dtype
from vbfmt.estimate.architecture import Linear
from vbfmt.estimate.shape import Shape
from vbfmt.module import Module


@dataclass(frozen=True)
class Cost:
    """The cost of one method.

    Attributes:
        method: name and sizes of the method.
        trained: number of trained parameters.
        stored: number of stored parameters in float32-equivalents (paper, Sec. 3.4): an 8-bit index
            counts as a quarter.
        bytes: size on disk. For VB-LoRA, this is the whole packed file (without the source's config
            and metadata); for other methods, four bytes for each stored parameter.
    """

    method: str
    trained: int
    stored: float
    bytes: int


@dataclass(frozen=True)
class Ranks:
    """The sizes of the other methods; None for the default.

    Attributes:
        lora: rank of LoRA; default: VB-LoRA's.
        vera: rank of VeRA; default: 256, as in PEFT.
        tied: rank of Tied-LoRA; default: VB-LoRA's.
        xs: rank of LoRA-XS; default: 64, as in the paper's Table 4.
        uni: length of Uni-LoRA's vector; default: h · b, as many elements as the vector bank.
    """

    lora: int | None = None
    vera: int = 256
    tied: int | None = None
    xs: int = 64
    uni: int | None = None


def compare(layers: Sequence[Linear], shape: Shape, ranks: Ranks | None = None) -> tuple[Cost, ...]:
    """Return the costs of VB-LoRA and the other methods for the same layers.

    Raises:
        ContentError: h, b, k or r break a rule of the format.
    """
    ranks = ranks or Ranks()
    lora_rank, tied_rank = ranks.lora or shape.r, ranks.tied or shape.r
    length = ranks.uni or shape.h * shape.b
    return (
        vblora(layers, shape),
        _cost(f"LoRA, r = {lora_rank}", lora(layers, lora_rank)),
        _cost(f"VeRA, r = {ranks.vera}", vera(layers, ranks.vera)),
        _cost(f"Tied-LoRA, r = {tied_rank}", tied_lora(layers, tied_rank)),
        _cost(f"LoRA-XS, r = {ranks.xs}", lora_xs(layers, ranks.xs)),
        _cost(f"Uni-LoRA, d = {length}", length),
        _cost("full fine-tuning of these layers", full(layers)),
    )


def vblora(layers: Sequence[Linear], shape: Shape) -> Cost:
    """Return the cost of VB-LoRA.

    The bank and the logits are trained. The bank, and k indices and k − 1 weights for each
    sub-vector, are stored.

    Raises:
        ContentError: h, b, k or r break a rule of the format.
    """
    modules = _modules(layers, shape)
    rows = shape.subvectors(layers)
    bank = shape.h * shape.b
    return Cost(
        f"VB-LoRA, h = {shape.h}, b = {shape.b}, k = {shape.k}, r = {shape.r}",
        trained=bank + rows * shape.h,
        stored=float32_equivalents(shape, rows),
        bytes=_file_length(modules, shape),
    )


def float32_equivalents(shape: Shape, rows: int) -> float:
    """Return hb + N(k − 1) weights + Nk indices. An 8-bit index counts as ¼, a 16-bit one as ½."""
    index = index_dtype(shape.h).itemsize / 4
    return shape.h * shape.b + rows * (shape.k - 1) + rows * shape.k * index


def full(layers: Sequence[Linear]) -> int:
    """Return the number of weights of the layers: L·M·d² in Sec. 3.4."""
    return sum(layer.in_features * layer.out_features for layer in layers)


def lora(layers: Sequence[Linear], rank: int) -> int:
    """Return the sum of r · (in + out) over the layers: two factors for each."""
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)


def vera(layers: Sequence[Linear], rank: int) -> int:
    """Return the sum of out + r over the layers: two scaling vectors for each."""
    return sum(layer.out_features + rank for layer in layers)


def tied_lora(layers: Sequence[Linear], rank: int) -> int:
    """Return VeRA's count, plus LoRA's with one layer of each kind."""
    kinds = {(layer.leaf, layer.in_features, layer.out_features): layer for layer in layers}
    return vera(layers, rank) + lora(list(kinds.values()), rank)


def lora_xs(layers: Sequence[Linear], rank: int) -> int:
    """Return r² times the number of layers: one matrix for each."""
    return rank * rank * len(layers)


def _cost(method: str, count: int) -> Cost:
    return Cost(method, trained=count, stored=count, bytes=4 * count)


def _modules(layers: Sequence[Linear], shape: Shape) -> tuple[Module, ...]:
    modules = tuple(
        sorted(
            (
                Module(x.name, x.in_features, x.out_features, shape.r, x.fan_in_fan_out)
                for x in layers
            ),
            key=lambda module: module.name.encode(),
        )
    )
    rules.raise_first(rules.broken_sizes(shape.h, shape.b, shape.k))
    rules.raise_first(rules.broken_modules(modules, shape.b))
    return modules


def _file_length(modules: tuple[Module, ...], shape: Shape) -> int:
    """Return the length of the packed file in bytes, from a header with zeros as hashes."""
    blank = header.Header(shape.h, shape.b, shape.k, modules, (), ())
    lengths = [length or 0 for length in blank.lengths()]
    sections = tuple(
        container.Section(offset, length, bytes(32))
        for offset, length in zip(container.offsets(lengths), lengths, strict=True)
    )
    front = header.encode(header.Header(shape.h, shape.b, shape.k, modules, (), sections))
    start = container.align(container.PREAMBLE_LENGTH + len(front))
    return start + sections[-1].offset + sections[-1].length
