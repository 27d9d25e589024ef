"""Find the blocks of a weight: the tensors on the disk that hold its rows, and their order."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbfmt.converters.names.loaded_model import LoadedModel, Shape, number_in
from vbfmt.errors import SourceError
from vbfmt.module import Module

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """A module's weight, or some rows of it, in a tensor on the disk.

    Attributes:
        tensor: the tensor's name on the disk.
        rows: for each of `own_rows`, its row in the tensor (its column if `transposed`); None if
            the tensor is the whole weight.
        columns: for each column of the weight, its column in the tensor (its row if `transposed`);
            None if the tensor is the whole weight.
        own_rows: the rows of the loaded model's weight that are in this tensor; None for all rows.
        transposed: whether rows of the weight are columns of the tensor.
        index: for a three-dimensional tensor, the index of the matrix that holds the weight.
    """

    tensor: str
    rows: Positions | None = None
    columns: Positions | None = None
    own_rows: Positions | None = None
    transposed: bool = False
    index: int | None = None


def of_converted(loaded: LoadedModel, target: str) -> tuple[Block, ...]:
    """Return the blocks of a weight that transformers assembles from elements of other tensors.

    Args:
        loaded: the model.
        target: the weight's name in the loaded model.

    Raises:
        SourceError: the weight does not consist of whole rows of those tensors.
    """
    source = loaded.sources[target]
    try:
        numbers = loaded.indices(target)
    except Exception as error:  # noqa: BLE001 - transformers' conversions may raise anything
        raise SourceError(
            "cannot find a weight in the base's files", part=target, found=error
        ) from None
    start = 0
    blocks = []
    for name in source.names:
        shape = loaded.disk[name]
        count = int(np.prod(shape, dtype=np.int64))
        block = _block(name, numbers, start, shape)
        if block is not None:
            blocks.append(block)
        start += count
    return tuple(blocks)


def _block(name: str, numbers: Positions, start: int, shape: Shape) -> Block | None:
    """Return the block of a weight in one tensor on the disk, or None if the tensor has no row of
    it.

    Args:
        name: the tensor's name.
        numbers: result of `LoadedModel.indices` for the weight, (out, in).
        start: the number of the tensor's first element in `numbers`.
        shape: the tensor's shape.

    Raises:
        SourceError: the tensor's elements are not whole rows of the weight in a known order.
    """
    count = int(np.prod(shape, dtype=np.int64))
    inside = (numbers >= start) & (numbers < start + count)
    own = np.flatnonzero(inside.all(axis=1)) if numbers.ndim == 2 else np.empty(0, np.int64)
    if inside.sum() != own.size * numbers.shape[-1] or len(shape) != 2:
        raise SourceError(
            "unknown layout of a weight in the base's files",
            part=name,
            found=list(shape),
            advice="load the base with transformers and save it with save_original_format=False",
        )
    if not own.size:
        return None
    part = numbers[own] - start
    row, column = part // shape[1], part % shape[1]
    for transposed, (along, across) in ((False, (row, column)), (True, (column, row))):
        rows, columns = along[:, 0], across[0]
        if (along == rows[:, None]).all() and (across == columns).all():
            return Block(name, rows, columns, own, transposed)
    raise SourceError("unknown order of a weight's elements", part=name)


def of_fused(
    loaded: LoadedModel, module: Module, weight: str, fused: str, pattern: str
) -> tuple[Block, ...] | None:
    """Return the block of an expert's weight in the tensor that holds all experts.

    To find the rows, the conversion that transformers applies to the weights of single experts is
    applied to row numbers instead.

    Args:
        loaded: the model.
        module: the adapted module, one expert's layer.
        weight: the name of its weight.
        fused: the name on the disk of the tensor that holds all experts.
        pattern: the pattern of transformers' converter that `weight` matches.

    Returns:
        One block, or None if the expert's rows cannot be found in this way.
    """
    number, shape = number_in(pattern, weight), loaded.disk[fused]
    if number is None or len(shape) != 3 or number >= shape[0]:
        return None
    rows = module.out_features
    try:
        found, first = _numbered_rows(loaded, fused, pattern, experts=shape[0], rows=rows)
    except Exception:  # noqa: BLE001 - transformers' conversions may raise anything
        return None
    first += number * rows
    transposed = found.shape == (shape[0], 1, shape[2]) and rows != 1
    width = shape[1] if transposed else shape[2]
    if not (transposed or found.shape == (*shape[:2], 1)) or width != module.in_features:
        return None
    index, *others = np.nonzero((found >= first) & (found < first + rows))
    if len(set(index.tolist())) != 1 or index.size != rows:
        return None
    positions = np.empty(rows, np.int64)
    positions[found[index, others[0], others[1]] - first] = others[1] if transposed else others[0]
    return (
        Block(
            fused,
            positions,
            np.arange(width, dtype=np.int64),
            np.arange(rows, dtype=np.int64),
            transposed,
            int(index[0]),
        ),
    )


def _numbered_rows(
    loaded: LoadedModel, fused: str, pattern: str, *, experts: int, rows: int
) -> tuple[Positions, int]:
    """Convert the row numbers of all experts' weights, as transformers would convert the weights.

    One number stands for a whole row, so each matrix has a single column. In the result, the
    dimension of size 1 shows whether transformers transposes the matrices.

    Returns:
        The converted numbers, and the first number of the weights that match `pattern`.
    """
    import torch

    converter = copy.deepcopy(loaded.converter(pattern))
    patterns = converter.source_patterns
    for order, each in enumerate(patterns):
        for expert in range(experts):
            start = (order * experts + expert) * rows
            numbers = torch.arange(start, start + rows).reshape(rows, 1)
            converter.add_tensor(fused, f"{each}{expert}", each, numbers)
    made = converter.convert(fused, model=loaded.model, config=loaded.model.config)
    value = next(iter(made.values()))
    found = (value[0] if isinstance(value, list) else value).numpy()
    return found, patterns.index(pattern) * experts * rows
