"""The layer and kind of modules, found from their names."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import adapters, names
from vbfmt import Adapter, Module
from vbfmt._math.admixture import canonical_rows
from vbfmt.analysis.module_names import Position, kinds, positions, reading_order, thirds


def found_in(adapter: Adapter) -> dict[str, Position]:
    return positions(module.name for module in adapter)


def adapter_of(*module_names: str) -> Adapter:
    rows = {
        Module(name, 2, 2, 1): canonical_rows(np.zeros((2, 1), "u1"), np.ones((2, 1)), 1)
        for name in module_names
    }
    return Adapter.from_rows(np.ones((1, 2), "f4"), rows)


def test_llama():
    found = positions(
        f"model.layers.{n}.{name}" for n in (0, 11) for name in ("self_attn.q_proj", "mlp.up_proj")
    )
    assert found["model.layers.11.self_attn.q_proj"] == Position(11, "q_proj")
    assert found["model.layers.0.mlp.up_proj"] == Position(0, "up_proj")


def test_dense_layers_of_bert_are_of_three_kinds_and_a_pooler():
    stems = ("attention.output.dense", "intermediate.dense", "output.dense", "attention.self.query")
    found = positions([*(f"bert.encoder.layer.3.{stem}" for stem in stems), "bert.pooler.dense"])
    assert [place.kind for place in found.values()] == [
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
        "query",
        "pooler.dense",
    ]
    assert found["bert.pooler.dense"].layer is None
    assert found["bert.encoder.layer.3.output.dense"].layer == 3


def test_experts_of_one_layer_are_one_kind():
    found = positions(f"layers.{n}.mlp.experts.{e}.w1" for n in (0, 1) for e in range(3))
    assert set(found.values()) == {Position(0, "w1"), Position(1, "w1")}


def test_encoder_and_decoder_are_different_kinds():
    found = positions(f"{side}.block.0.layer.0.SelfAttention.q" for side in ("encoder", "decoder"))
    assert len({place.kind for place in found.values()}) == 2


@given(st.lists(names(), min_size=1, max_size=8, unique=True))
def test_kinds_differ_exactly_where_names_differ_by_more_than_numbers(found):
    def without_numbers(name: str) -> list[str]:
        return ["*" if part.isascii() and part.isdigit() else part for part in name.split(".")]

    where = positions(found)
    for one in found:
        for other in found:
            same = without_numbers(one) == without_numbers(other)
            assert (where[one].kind == where[other].kind) == same


def test_numbers_in_names_are_ordered_as_numbers():
    adapter = adapter_of("head", "layers.10.a", "layers.2.b", "layers.2.a")
    assert reading_order(found_in(adapter)) == ["layers.2.a", "layers.2.b", "layers.10.a", "head"]


def test_thirds_of_the_layers():
    adapter = adapter_of(*(f"layers.{n}.a" for n in range(24)), "pooler")
    names_of_groups, group = thirds(found_in(adapter))
    assert names_of_groups == ["layers 0–7", "layers 8–15", "layers 16–23", "outside the layers"]
    of = dict(zip((module.name for module in adapter), group.tolist(), strict=True))
    assert (of["layers.7.a"], of["layers.8.a"], of["layers.23.a"], of["pooler"]) == (0, 1, 2, 3)


def test_fewer_than_three_layers_make_fewer_groups():
    assert thirds(found_in(adapter_of("layers.4.a")))[0] == ["layer 4"]
    assert thirds(found_in(adapter_of("head")))[0] == ["outside the layers"]


@given(adapters(), st.integers(1, 5))
def test_every_module_is_in_a_group_and_no_group_is_empty(adapter, most):
    for names_of_groups, group in (thirds(found_in(adapter)), kinds(found_in(adapter), most)):
        assert len(group) == len(adapter)
        assert sorted(set(group.tolist())) == list(range(len(names_of_groups)))


@pytest.mark.parametrize(("most", "expected"), [(3, ["a", "b", "c"]), (2, ["a", "others"])])
def test_the_rarest_kinds_are_grouped(most, expected):
    adapter = adapter_of("layers.0.a", "layers.1.a", "layers.0.b", "layers.0.c")
    assert kinds(found_in(adapter), most)[0] == expected
