"""The rows of stored tensors that form a weight, found from the model that transformers would
load."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from vbfmt import Module, errors
from vbfmt.converters.names import blocks

SHAPES = {"one": (4, 3), "two": (2, 3)}
COUNT = 18


def running(numbers, disk=SHAPES):
    """Return a model with one weight. All stored elements are numbered; `numbers` says which of
    them each element of the weight is."""

    def indices(name):
        if isinstance(numbers, Exception):
            raise numbers
        return np.asarray(numbers)

    source = SimpleNamespace(names=tuple(disk))
    return SimpleNamespace(sources={"weight": source}, disk=disk, indices=indices)


def values(found, disk=SHAPES):
    """Return the weight that the blocks form, with each element's number instead of a value."""
    starts = np.cumsum([0, *(np.prod(shape) for shape in disk.values())])
    stored = {
        name: np.arange(start, start + np.prod(shape)).reshape(shape)
        for (name, shape), start in zip(disk.items(), starts, strict=False)
    }
    rows = {}
    for block in found:
        tensor = stored[block.tensor].T if block.transposed else stored[block.tensor]
        part = tensor[block.rows][:, block.columns]
        rows.update(zip(block.own_rows.tolist(), part.tolist(), strict=True))
    return [rows[number] for number in sorted(rows)]


WHOLE = np.arange(COUNT).reshape(6, 3)


@pytest.mark.parametrize(
    ("numbers", "tensors"),
    [
        (WHOLE, ["one", "two"]),
        (WHOLE[::-1], ["one", "two"]),
        (WHOLE[:, [2, 0, 1]], ["one", "two"]),
        (WHOLE[1:3], ["one"]),
        (WHOLE[[5, 0, 4]], ["one", "two"]),
        (WHOLE[:4].T, ["one"]),
        (WHOLE[4:].T[::-1], ["two"]),
    ],
    ids=["joined", "reversed", "columns", "a part", "mixed", "transposed", "transposed, reversed"],
)
def test_rows_columns_and_transposition_are_found(numbers, tensors):
    found = blocks.of_converted(running(numbers), "weight")
    assert [block.tensor for block in found] == tensors
    assert values(found) == numbers.tolist()


SHUFFLED = WHOLE[:4].copy()
SHUFFLED[0, 0], SHUFFLED[1, 1] = SHUFFLED[1, 1], SHUFFLED[0, 0]


@pytest.mark.parametrize(
    ("numbers", "disk", "message"),
    [
        (WHOLE[:2, :2] + [[0, 12]], SHAPES, "unknown layout of a weight.*one: found .4, 3."),
        (np.arange(COUNT), SHAPES, "unknown layout of a weight.*one: found .4, 3."),
        (WHOLE, {"one": (2, 3, 3)}, "unknown layout of a weight.*one: found .2, 3, 3."),
        (SHUFFLED, SHAPES, "unknown order of a weight's elements.*one"),
        (ValueError("it adds them"), SHAPES, "cannot find a weight.*weight: found it adds them"),
    ],
    ids=["a row of two tensors", "a vector", "three dimensions", "shuffled", "not only moved"],
)
def test_a_weight_that_does_not_consist_of_rows_is_refused(numbers, disk, message):
    with pytest.raises(errors.SourceError, match=message):
        blocks.of_converted(running(numbers, disk), "weight")


class Converter:
    """A converter that stacks the experts' parts as transformers does, or applies a given
    function."""

    source_patterns = ("experts.*.w1", "experts.*.w3")

    def __init__(self, convert=None):
        self.pieces, self._convert = {}, convert

    def add_tensor(self, target, name, pattern, piece):
        self.pieces.setdefault(pattern, []).append(piece)

    def convert(self, target, *, model, config):
        import torch

        joined = torch.cat([torch.stack(self.pieces[each]) for each in self.source_patterns], 1)
        return {target: self._convert(joined) if self._convert else joined}


def fused(convert=None, shape=(3, 8, 5), name="experts.2.w3", in_features=5):
    pytest.importorskip("torch")
    module = Module("m", in_features, 4, 1)
    model = SimpleNamespace(config=None)
    known = SimpleNamespace(
        disk={"fused": shape}, model=model, converter=lambda pattern: Converter(convert)
    )
    return blocks.of_fused(known, module, name, "fused", "experts.*.w3")


def test_an_expert_is_found_in_the_tensor_of_all_experts():
    (block,) = fused()
    assert (block.tensor, block.index, block.transposed) == ("fused", 2, False)
    assert block.rows.tolist() == [4, 5, 6, 7]
    assert block.columns.tolist() == [0, 1, 2, 3, 4]
    (transposed,) = fused(lambda joined: joined.transpose(1, 2), shape=(3, 5, 8))
    assert (transposed.index, transposed.transposed) == (2, True)
    assert transposed.rows.tolist() == [4, 5, 6, 7]
    (listed,) = fused(lambda joined: [joined])
    assert listed.rows.tolist() == block.rows.tolist()


def fails(joined):
    raise RuntimeError("no such operation")


@pytest.mark.parametrize(
    "options",
    [
        {"name": "experts.w3"},
        {"name": "experts.3.w3"},
        {"shape": (8, 5)},
        {"in_features": 6},
        {"convert": fails},
        {"convert": lambda joined: joined[0]},
        {"convert": lambda joined: joined[:2]},
    ],
    ids=["no number", "too high", "two dimensions", "width", "raises", "one expert", "too few"],
)
def test_an_expert_that_the_tensor_cannot_hold_has_no_block(options):
    assert fused(**options) is None
