"""What each figure shows of an adapter."""

from __future__ import annotations

import re

import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from tests.plot.conftest import drawn, made
from vbfmt.plot import Scene, bank, bins, delta
from vbfmt.plot.drawn import Cells, Strips


def test_the_strongest_of_many_vectors_is_named_as_on_the_axis():
    adapter = made(h=bins.MOST + 1, names=tuple(f"layers.{n}.q" for n in range(9)))
    found, _ = drawn(adapter, "kinds")
    bounds = bins.bounds(adapter.h)
    bin_of = int(np.abs(found.hovers[0].values["value"]).max(axis=0).argmax())
    first, last = bounds[bin_of], bounds[bin_of + 1] - 1
    vector = Scene(adapter, "x").by_norm[first]
    assert (
        f"on vectors of rank {first} to {last} by norm, " in found.caption
        or f"on vector {vector} (index; rank {first} by norm), " in found.caption
    )


def test_few_vectors_are_labelled_with_their_index():
    adapter = made(h=6)
    found, figure = drawn(adapter, "projection")
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert [label for label in labels if label.isdigit()] == list("012345")
    assert found.caption.endswith("; numbers: index in the bank")
    assert "numbers" not in drawn(made(h=400), "projection")[0].caption


def test_usage_shows_every_vector_once(trained):
    found, _ = drawn(trained, "usage")
    (strips,) = found.hovers
    assert isinstance(strips, Strips)
    assert sum(strips.columns["vectors"]) == trained.h


def test_depth_shows_every_sub_vectors_weight(trained):
    found, _ = drawn(trained, "depth")
    assert len(found.hovers) == 4
    total = sum(float(np.sum(hover.columns["weight"])) for hover in found.hovers)
    # Each row's largest weight is rounded to float32, with an error of at most 2⁻²⁵.
    assert total == pytest.approx(trained.N, abs=trained.N * 2**-25)


def test_kinds_shows_deviations_whose_mean_is_zero(trained):
    found, _ = drawn(trained, "kinds")
    (cells,) = found.hovers
    assert isinstance(cells, Cells)
    np.testing.assert_allclose(cells.values["value"].mean(axis=1), 0, atol=1e-9)
    assert list(cells.rows[-2:]) == ["pooler.dense A (12)", "pooler.dense B (12)"]


def test_kinds_ignores_chance_in_a_row_of_few_sub_vectors(trained):
    """With 12 sub-vectors and 64 vectors, some vector has several times an even share by chance."""
    found, _ = drawn(trained, "kinds")
    assert "pooler" not in found.caption
    shown = re.search(r", \+([\d.]+) σ \(at random ±([\d.]+)\)", found.caption)
    assert shown is not None
    strongest = np.abs(found.hovers[0].values["value"]).max()
    assert float(shown[1]) == pytest.approx(strongest, abs=0.051)
    assert float(shown[1]) < float(shown[2])


def test_kinds_of_a_random_adapter_shows_no_structure():
    adapter = made(h=50, names=tuple(f"layers.{n}.{kind}" for n in range(40) for kind in "qv"))
    found, figure = drawn(adapter, "kinds")
    far = np.abs(found.hovers[0].values["value"])
    assert far.max() < figure.axes[0].images[0].norm.vmax
    assert (far < 2).mean() > 0.9


def test_depth_ignores_modules_outside_the_layers_in_the_agreement(trained):
    found, _ = drawn(trained, "depth")
    inside = [np.asarray(hover.columns["weight"]) for hover in found.hovers[:3]]
    shares = [weights / weights.sum() for weights in inside]
    pairs = [1 - np.abs(shares[i] - shares[j]).sum() / 2 for i, j in ((0, 1), (0, 2), (1, 2))]
    assert f"groups of layers agree on {np.mean(pairs):.0%} of their weight" in found.caption


def test_depth_of_a_random_adapter_agrees_as_by_chance():
    adapter = made(h=50, names=tuple(f"layers.{n}.q" for n in range(60)), seed=3)
    found, _ = drawn(adapter, "depth")
    shown = re.search(r"agree on (\d+)% of their weight \(at random (\d+)%\)", found.caption)
    assert shown is not None
    assert abs(int(shown[1]) - int(shown[2])) <= 4


def test_kinds_and_delta_shorten_names_alike():
    names = tuple(f"encoder.block_{n}.a_very_long_name_{n}.and_more.projection" for n in range(9))
    for name in ("kinds", "delta"):
        _, figure = drawn(made(names=names), name)
        labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
        assert len(set(labels)) == len(labels)
        for n in range(9):
            assert any(f"_{n}" in label for label in labels)


def test_selection_shows_every_selection_with_its_module(trained):
    found, _ = drawn(trained, "selection")
    (cells,) = found.hovers
    counts = cells.values["count"]
    assert counts.shape == (trained.h, trained.N)
    assert counts.sum() == trained.N * trained.k
    assert cells.columns[0] == "sub-vector 0 (layer 0 attention.output.dense A)"
    first = trained.indices[trained.rows("bert.encoder.layer.0.attention.output.dense").start]
    assert np.flatnonzero(counts[:, 0]).tolist() == sorted(first.tolist())


def test_many_selections_are_counted_in_cells():
    adapter = made(h=500, names=tuple(f"layers.{n}.q" for n in range(900)))
    found, _ = drawn(adapter, "selection")
    counts = found.hovers[0].values["count"]
    assert counts.sum() == adapter.N * adapter.k
    assert counts.mean() > 2


def test_two_adapters_are_compared(trained):
    same, _ = drawn(trained, "selection", before=trained)
    parts = same.hovers[0].values
    assert parts["before"].sum() == parts["after"].sum() == 0
    assert parts["both"].sum() == trained.N * trained.k
    assert same.caption.startswith("100% of the selections")

    one, other = made(seed=1), made(seed=2)
    found, _ = drawn(one, "selection", before=other)
    parts = found.hovers[0].values
    kept = sum(
        len(set(a.tolist()) & set(b.tolist()))
        for a, b in zip(one.indices, other.indices, strict=True)
    )
    assert parts["both"].sum() == kept
    assert parts["before"].sum() == parts["after"].sum() == one.N * one.k - kept


def test_norms_of_delta_are_in_the_correct_cells(trained):
    found, _ = drawn(trained, "delta")
    (cells,) = found.hovers
    row = list(cells.rows).index("intermediate.dense")
    column = list(cells.columns).index("layer 3")
    exact = np.linalg.norm(trained.delta("bert.encoder.layer.3.intermediate.dense").astype(float))
    assert cells.values["value"][row, column] == pytest.approx(exact, rel=1e-6)
    assert np.isnan(cells.values["value"][row, list(cells.columns).index("outside the layers")])


def test_delta_averages_modules_that_share_a_cell():
    names = tuple(f"layers.0.m{'x' * n}" for n in range(40))
    found, figure = drawn(made(names=names), "delta")
    values = found.hovers[0].values["value"][:, 0]
    assert found.hovers[0].rows[-1] == "others"
    assert values[:-1].min() < values[-1] < values[:-1].max()
    assert "root mean square" in figure.axes[1].get_ylabel()


def test_delta_writes_values_with_equal_decimals(trained):
    _, figure = drawn(trained, "delta")
    written = [text.get_text() for text in figure.axes[0].texts if "." in text.get_text()]
    decimals = {len(text.partition(".")[2]) for text in written if "‖" not in text}
    assert len(written) > len(trained)
    assert len(decimals) == 1


def test_delta_of_a_bank_of_zeros_has_no_negative_colours():
    _, figure = drawn(made(scale=0), "delta")
    norm = figure.axes[0].images[0].norm
    assert (norm.vmin, norm.vmax) == (0, 1)


def test_many_compared_selections_have_a_legend():
    names = tuple(f"layers.{n}.q" for n in range(900))
    one, other = (made(h=300, names=names, seed=seed) for seed in (1, 2))
    found, figure = drawn(one, "selection", before=other)
    (image,) = figure.axes[0].images
    parts = found.hovers[0].values
    share = np.asarray(image.get_array())
    assert share.shape == parts["both"].shape
    assert 0 <= share.min() <= share.max() <= image.norm.vmax <= 1
    changed, total = parts["before"] + parts["after"], sum(parts.values()) + parts["both"]
    np.testing.assert_allclose(share, changed / total)
    assert changed.sum() / total.sum() > 0.9
    assert figure.axes[1].get_ylabel() == "share of selections that changed"


def test_many_sub_vectors_are_shown_by_their_density(trained, monkeypatch):
    monkeypatch.setattr(bank, "_MOST_DOTS", trained.N - 1)
    _, figure = drawn(trained, "projection")
    (cells,) = [
        each
        for axes in figure.axes
        for each in axes.collections
        if isinstance(each, PolyCollection)
    ]
    assert cells.get_array().sum() == trained.N


def test_many_layers_share_columns():
    """Earlier, a page had a value for each of 12,000 layers and 24 kinds."""
    count = 2 * delta._MOST_COLUMNS + 1
    found, figure = drawn(made(names=tuple(f"layers.{n}.q" for n in range(count))), "delta")
    (cells,) = found.hovers
    assert cells.columns[0] == "layers 0–2"
    assert cells.columns[-1] == f"layer {count - 1}"
    assert len(cells.columns) == cells.values["value"].shape[1] <= delta._MOST_COLUMNS
    assert figure.axes[0].get_images()[0].get_array().shape == cells.values["value"].shape
