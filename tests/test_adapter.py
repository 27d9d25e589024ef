"""The class `Adapter`: factors, ΔW, iteration and equality."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from spec.golden.make import wide_indices, worked_example
from tests.strategies import adapters
from vbfmt import Adapter, Module, Rows, digest, load
from vbfmt._math.admixture import all_weights


def test_the_worked_example_gives_the_factors_of_the_specification():
    a, b = worked_example().factors("layer")
    np.testing.assert_array_equal(a, [[-0.5, 0.875, 2, 3]])
    np.testing.assert_array_equal(b, [[3], [4]])
    assert a.dtype == b.dtype == np.float32


def test_rows_are_arranged_as_in_equation_3_2():
    """Row (component, tile) of a factor is the slice of this component and of the tile's
    features."""
    adapter = wide_indices()
    module = adapter["h.0.attn.c_attn"]
    a, b = adapter.factors(module.name)
    assert a.shape == (2, 8)
    assert b.shape == (24, 2)
    rows = adapter.rows(module.name)
    weights = all_weights(adapter.weights[rows]).astype(np.float64)
    bank = adapter.bank.astype(np.float64)
    for number, (indices, shares) in enumerate(zip(adapter.indices[rows], weights, strict=True)):
        vector = (shares[:, None] * bank[indices]).sum(axis=0).astype(np.float32)
        if number < 4:
            component, tile = divmod(number, 2)
            found = a[component, tile * 4 : tile * 4 + 4]
        else:
            component, tile = divmod(number - 4, 6)
            found = b[tile * 4 : tile * 4 + 4, component]
        np.testing.assert_allclose(found, vector, rtol=1e-7)


def test_the_nearest_of_hostile_names_is_found_in_little_time():
    """Earlier, ``difflib`` took up to 28 minutes for this."""
    names = ["ab" * 500 + f"{number:05}" for number in range(10_000)]
    rows = Rows(np.zeros((2, 1), "u1"), np.empty((2, 0), "f4"))
    made = Adapter.from_rows(np.ones((1, 1)), {Module(name, 1, 1, 1): rows for name in names})
    begin = time.process_time()
    with pytest.raises(KeyError):
        made["ba" * 500]
    assert time.process_time() - begin < 5


@given(adapters())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_all_factors_at_once_equal_those_one_by_one(adapter):
    found = list(adapter.iter_factors())
    assert [module for module, _, _ in found] == list(adapter)
    for module, a, b in found:
        one_a, one_b = adapter.factors(module.name)
        np.testing.assert_array_equal(a, one_a)
        np.testing.assert_array_equal(b, one_b)
        assert a.shape == (module.rank, module.in_features)
        assert b.shape == (module.out_features, module.rank)


def test_delta_is_oriented_as_the_layer_stores_its_weight():
    adapter = wide_indices()
    a, b = adapter.factors("h.0.mlp.c_fc")
    assert adapter.delta("h.0.mlp.c_fc").shape == (8, 32)
    np.testing.assert_array_equal(adapter.delta("h.0.mlp.c_fc"), (b @ a).T)
    a, b = worked_example().factors("layer")
    np.testing.assert_array_equal(worked_example().delta("layer"), b @ a)


def test_modules_are_found_by_name():
    adapter = wide_indices()
    assert len(adapter) == 2
    assert "h.0.mlp.c_fc" in adapter
    assert adapter["h.0.mlp.c_fc"].out_features == 32
    with pytest.raises(KeyError, match=r"nearest: h\.0\.mlp\.c_fc"):
        adapter["h.0.mlp.c_f"]
    with pytest.raises(KeyError):
        adapter.factors("nothing like it")


def test_equality_is_that_of_the_bytes():
    adapter = worked_example()
    assert adapter == worked_example()
    assert adapter != dataclasses.replace(adapter, bank=adapter.bank + np.float32(1))
    zero = dataclasses.replace(adapter, bank=np.zeros_like(adapter.bank))
    minus = dataclasses.replace(adapter, bank=-np.zeros_like(adapter.bank))
    assert zero != minus
    assert adapter != "something else"


def test_repr_shows_the_sizes():
    assert repr(wide_indices()) == (
        "<VB-LoRA adapter of example/größe: 2 modules, h=257 b=4 k=3 N=26, 3 other tensors>"
    )


@pytest.mark.parametrize("rows", [8192, 8193, 20000])
def test_factors_of_a_large_adapter_are_composed_in_groups(rows, monkeypatch):
    """Groups have 8192 rows. The last group is full, has one module, or is empty."""
    monkeypatch.setattr("vbfmt.adapter._ROWS_AT_ONCE", 8192)
    rng = np.random.default_rng(0)
    modules = {
        Module("a", 4096, 2048, 1),
        Module("b", 1024, 1024, 1),
        Module("c", rows - 8193, 1, 1),
    }
    found = {
        module: Rows(
            rng.integers(0, 5, (module.rows(1), 1)).astype("u1"),
            np.zeros((module.rows(1), 0), "<f4"),
        )
        for module in modules
        if module.in_features > 0
    }
    adapter = Adapter.from_rows(rng.standard_normal((5, 1)), found)
    assert len(list(adapter.iter_factors())) == len(adapter)
    for module, a, b in adapter.iter_factors():
        one_a, one_b = adapter.factors(module.name)
        np.testing.assert_array_equal(a, one_a)
        np.testing.assert_array_equal(b, one_b)


@pytest.mark.parametrize("name", ["q_proj", "self_attn.q_proj", "q_porj", "model.layers.0.q_proj"])
def test_the_error_for_an_unknown_module_suggests_the_nearest_name(name):
    """For difflib, the last component of a name is not similar to the whole name."""
    modules = [
        f"model.layers.{n}.self_attn.{leaf}" for n in (0, 1) for leaf in ("o_proj", "q_proj")
    ]
    rows = Rows(np.zeros((2, 1), "u1"), np.empty((2, 0), "f4"))
    made = Adapter.from_rows(np.ones((1, 2)), {Module(name, 2, 2, 1): rows for name in modules})
    with pytest.raises(KeyError, match=r"nearest: model\.layers\.[01]\.self_attn\.q_proj"):
        made[name]


@given(adapters())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_an_adapter_can_be_pickled_and_copied(adapter):
    assert pickle.loads(pickle.dumps(adapter)) == adapter
    assert copy.copy(adapter) == adapter
    assert copy.deepcopy(adapter) == adapter


def test_a_mapped_adapter_can_be_sent_to_another_process(tmp_path):
    worked_example().save(tmp_path / "x.vblora")
    assert pickle.loads(pickle.dumps(load(tmp_path / "x.vblora"))) == worked_example()


def test_methods_equal_the_functions(tmp_path):
    adapter = worked_example()
    found = adapter.save(tmp_path / "x.vblora")
    assert found == adapter.digest == digest(adapter)
    assert Adapter.load(tmp_path / "x.vblora", digest=found) == adapter
    with pytest.raises(FileExistsError):
        adapter.save(tmp_path / "x.vblora")


def test_iteration_length_and_membership_agree():
    adapter = wide_indices()
    assert len(list(adapter)) == len(adapter)
    assert all(module in adapter for module in adapter)
    assert all(module.name in adapter for module in adapter)
    assert Module("h.0.attn.c_attn", 1, 1, 1) not in adapter
    assert 0 not in adapter


def test_the_rank_is_the_largest():
    assert wide_indices().rank == max(module.rank for module in wide_indices())


def test_a_notebook_shows_a_table_without_markup_from_the_file():
    shown = dataclasses.replace(worked_example(), base_model="<script>")._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "<script>" not in shown
