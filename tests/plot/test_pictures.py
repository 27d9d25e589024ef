"""Every figure, of every odd adapter, as every kind of file."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from PIL import Image

from tests.plot.conftest import HOSTILE, made
from vbfmt.analysis.module_names import reading_order
from vbfmt.errors import ContentError, OutputExistsError, TargetError
from vbfmt.plot import FIGURES, Scene, bank, bins, delta, write
from vbfmt.plot.hover import Cells, Points, Strips, as_json
from vbfmt.plot.style import BY_INDEX, BY_NORM, settings

ODD = {
    "one vector": made(h=1, k=1),
    "k = h": made(h=3, k=3),
    "vectors of one element": made(b=1),
    "a bank of zeros": made(scale=0),
    "a huge bank": made(scale=1e36),
    "a tiny bank": made(scale=1e-40),
    "a bank above 256": made(h=400),
    "no layers": made(names=("head", "tail")),
    "wild names": made(names=(HOSTILE, f"layers.1.{HOSTILE}"), base_model=HOSTILE),
    "many kinds": made(names=tuple(f"layers.0.m{'x' * n}" for n in range(40))),
    "many layers": made(names=tuple(f"layers.{n}.q" for n in range(90))),
}


def drawn(adapter, name, before=None):
    with settings():
        figure = Figure(layout="constrained")
        return FIGURES[name].draw(figure, Scene(adapter, "x", before)), figure


@pytest.mark.parametrize("kind", ODD)
def test_every_figure_of_odd_adapters(kind, tmp_path):
    for name in FIGURES:
        found, _ = drawn(ODD[kind], name)
        assert found.title
        assert found.caption
        assert "nan" not in found.caption
        assert found.hovers
    with np.errstate(all="raise", under="ignore"):
        write(Scene(ODD[kind], kind), tmp_path / "x.svg")
    root = ElementTree.parse(tmp_path / "x.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not root.findall(".//{http://www.w3.org/2000/svg}script")


@pytest.mark.parametrize("kind", ["svg", "png", "html"])
def test_a_character_that_the_font_lacks_is_no_warning(kind, tmp_path):
    adapter = made(names=("layers.0.\U000143a4\u4e2d", "layers.1.\U000143a4\u4e2d"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(Scene(adapter, "x"), tmp_path / f"x.{kind}")


@pytest.mark.parametrize("name", FIGURES)
def test_axes_say_what_they_show(trained, name):
    _, figure = drawn(trained, name)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    labels = [a.get_xlabel() for a in figure.axes]
    assert any(labels)
    ticks = [text.get_text() for text in axes.get_yticklabels()]
    sideways = [axes.get_ylabel(), figure.get_supylabel(), *ticks]
    assert any(sideways)
    assert axes.get_title(loc="left")


def test_captions_and_axes_name_vectors_alike(trained):
    """``vector 7`` is an index everywhere; along an axis by norm, captions give the rank too."""
    scene = Scene(trained, "x")
    norms, figure = drawn(trained, "norms")
    assert figure.axes[0].get_xlabel() == BY_NORM
    assert f"the longest is vector {scene.by_norm[0]} (index)" in norms.caption
    assert norms.hovers[0].columns["vector"].tolist() == scene.by_norm.tolist()

    found, figure = drawn(trained, "kinds")
    (cells,) = found.hovers
    assert figure.axes[0].get_xlabel() == BY_NORM
    shown = re.search(r" on vector (\d+) \(index; rank (\d+) by norm\), ", found.caption)
    assert shown is not None
    vector, rank = map(int, shown.groups())
    assert np.abs(cells.values["value"]).max(axis=0).argmax() == rank
    assert scene.by_norm[rank] == vector
    assert cells.columns[rank] == f"vector {vector}"

    depth, figure = drawn(trained, "depth")
    assert figure.axes[len(depth.hovers) - 1].get_xlabel() == BY_NORM
    for hover in depth.hovers:
        assert hover.columns["vector"].tolist() == scene.by_norm.tolist()

    selection, figure = drawn(trained, "selection")
    assert figure.axes[0].get_ylabel() == BY_INDEX
    assert selection.hovers[0].rows == [f"vector {number}" for number in range(trained.h)]

    usage, figure = drawn(trained, "usage")
    assert figure.axes[0].get_ylabel() == "number of vectors"
    assert usage.hovers[0].text.startswith("{vectors} vectors are selected")


def test_the_strongest_of_many_vectors_is_named_as_the_axis_has_it():
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


def test_vectors_are_labelled_with_their_index_where_they_are_few():
    adapter = made(h=6)
    found, figure = drawn(adapter, "projection")
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert [label for label in labels if label.isdigit()] == list("012345")
    assert found.caption.endswith("; numbers: index in the bank")
    assert "numbers" not in drawn(made(h=400), "projection")[0].caption


def test_a_page_is_a_picture_of_that_size(trained, tmp_path):
    write(Scene(trained, "x"), tmp_path / "page.png")
    write(Scene(trained, "x"), tmp_path / "one.png", figures=["selection"])
    page, one = (Image.open(tmp_path / f"{name}.png") for name in ("page", "one"))
    assert page.width == 1700
    assert page.height in (2069, 2070)  # Matplotlib 3.8 rounds otherwise
    assert one.width > 2000
    # Something is drawn, and not one colour alone.
    assert len(np.unique(np.asarray(page.convert("L")))) > 50


@pytest.mark.parametrize("kind", ["png", "svg", "html"])
def test_the_same_adapter_gives_the_same_bytes(trained, tmp_path, kind):
    for name in ("a", "b"):
        write(Scene(trained, "x"), tmp_path / f"{name}.{kind}", figures=["usage"])
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_usage_shows_every_vector_once(trained):
    found, _ = drawn(trained, "usage")
    (strips,) = found.hovers
    assert isinstance(strips, Strips)
    assert sum(strips.columns["vectors"]) == trained.h


def test_depth_shows_every_sub_vectors_weight(trained):
    found, _ = drawn(trained, "depth")
    assert len(found.hovers) == 4
    total = sum(float(np.sum(hover.columns["weight"])) for hover in found.hovers)
    # Each row's largest weight is rounded to float32: by 2⁻²⁵ at most.
    assert total == pytest.approx(trained.N, abs=trained.N * 2**-25)


def test_kinds_shows_deviations_whose_mean_is_even(trained):
    found, _ = drawn(trained, "kinds")
    (cells,) = found.hovers
    assert isinstance(cells, Cells)
    np.testing.assert_allclose(cells.values["value"].mean(axis=1), 0, atol=1e-9)
    assert list(cells.rows[-2:]) == ["pooler.dense A (12)", "pooler.dense B (12)"]


def test_kinds_called_the_row_of_fewest_sub_vectors_the_strongest(trained):
    """Of 12 sub-vectors and 64 vectors some vector has several times an even share by chance."""
    found, _ = drawn(trained, "kinds")
    assert "pooler" not in found.caption
    shown = re.search(r", \+([\d.]+) σ \(at random ±([\d.]+)\)", found.caption)
    assert shown is not None
    strongest = np.abs(found.hovers[0].values["value"]).max()
    assert float(shown[1]) == pytest.approx(strongest, abs=0.051)
    assert float(shown[1]) < float(shown[2])


def test_kinds_of_a_random_adapter_looked_like_structure():
    adapter = made(h=50, names=tuple(f"layers.{n}.{kind}" for n in range(40) for kind in "qv"))
    found, figure = drawn(adapter, "kinds")
    far = np.abs(found.hovers[0].values["value"])
    assert far.max() < figure.axes[0].images[0].norm.vmax
    assert (far < 2).mean() > 0.9


def test_depth_let_modules_outside_the_layers_spoil_the_agreement(trained):
    found, _ = drawn(trained, "depth")
    inside = [np.asarray(hover.columns["weight"]) for hover in found.hovers[:3]]
    shares = [weights / weights.sum() for weights in inside]
    pairs = [1 - np.abs(shares[i] - shares[j]).sum() / 2 for i, j in ((0, 1), (0, 2), (1, 2))]
    assert f"groups of layers agree on {np.mean(pairs):.0%} of their weight" in found.caption


def test_depth_of_a_random_adapter_agrees_as_chance_has_it():
    adapter = made(h=50, names=tuple(f"layers.{n}.q" for n in range(60)), seed=3)
    found, _ = drawn(adapter, "depth")
    shown = re.search(r"agree on (\d+)% of their weight \(at random (\d+)%\)", found.caption)
    assert shown is not None
    assert abs(int(shown[1]) - int(shown[2])) <= 4


def test_kinds_and_delta_cut_names_to_the_same():
    names = tuple(f"encoder.block_{n}.a_very_long_name_{n}.and_more.projection" for n in range(9))
    for name in ("kinds", "delta"):
        _, figure = drawn(made(names=names), name)
        labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
        assert len(set(labels)) == len(labels)
        for n in range(9):
            assert any(f"_{n}" in label for label in labels)


def test_selection_shows_every_selection_and_says_where(trained):
    found, _ = drawn(trained, "selection")
    (cells,) = found.hovers
    counts = cells.values["count"]
    assert counts.shape == (trained.h, trained.N)
    assert counts.sum() == trained.N * trained.k
    assert cells.columns[0] == "sub-vector 0 (layer 0 attention.output.dense A)"
    first = trained.indices[trained.rows("bert.encoder.layer.0.attention.output.dense").start]
    assert np.flatnonzero(counts[:, 0]).tolist() == sorted(first.tolist())


def test_selection_of_many_is_put_into_cells_that_hold_some():
    adapter = made(h=500, names=tuple(f"layers.{n}.q" for n in range(900)))
    found, _ = drawn(adapter, "selection")
    counts = found.hovers[0].values["count"]
    assert counts.sum() == adapter.N * adapter.k
    assert counts.mean() > 2


def test_before_and_after(trained):
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


def test_before_must_be_of_the_same_model():
    with pytest.raises(ContentError, match=r"module layers\.0\.k: found .*, expected layers\.0\.q"):
        Scene(made(), "x", made(names=("layers.0.k",)))


def test_before_must_be_of_the_same_shape(trained):
    with pytest.raises(ContentError, match="`before` needs the same model"):
        Scene(made(), "x", trained)


def test_norms_of_delta_are_at_their_place(trained):
    found, _ = drawn(trained, "delta")
    (cells,) = found.hovers
    row = list(cells.rows).index("intermediate.dense")
    column = list(cells.columns).index("layer 3")
    exact = np.linalg.norm(trained.delta("bert.encoder.layer.3.intermediate.dense").astype(float))
    assert cells.values["value"][row, column] == pytest.approx(exact, rel=1e-6)
    assert np.isnan(cells.values["value"][row, list(cells.columns).index("outside the layers")])


def test_delta_showed_many_modules_together_as_the_brightest_cell():
    names = tuple(f"layers.0.m{'x' * n}" for n in range(40))
    found, figure = drawn(made(names=names), "delta")
    values = found.hovers[0].values["value"][:, 0]
    assert found.hovers[0].rows[-1] == "others"
    assert values[:-1].min() < values[-1] < values[:-1].max()
    assert "root mean square" in figure.axes[1].get_ylabel()


def test_delta_wrote_values_with_unlike_decimals(trained):
    _, figure = drawn(trained, "delta")
    written = [text.get_text() for text in figure.axes[0].texts if "." in text.get_text()]
    decimals = {len(text.partition(".")[2]) for text in written if "‖" not in text}
    assert len(written) > len(trained)
    assert len(decimals) == 1


def test_delta_of_a_bank_of_zeros_had_colours_below_nothing():
    _, figure = drawn(ODD["a bank of zeros"], "delta")
    norm = figure.axes[0].images[0].norm
    assert (norm.vmin, norm.vmax) == (0, 1)


@pytest.mark.parametrize("kind", ["one vector", "k = h", "many kinds"])
@pytest.mark.parametrize("name", ["usage", "norms", "depth", "kinds", "selection"])
def test_axes_that_number_things_showed_fractions(kind, name):
    _, figure = drawn(ODD[kind], name)
    figure.draw_without_rendering()
    axes = figure.axes[len(figure.axes) - 1 if name == "depth" else 0]
    axis = axes.yaxis if name == "selection" else axes.xaxis
    ticks = axis.get_ticklocs()
    assert len(ticks)
    assert all(tick == round(tick) for tick in ticks)


@pytest.mark.parametrize("name", ["usage", "projection"])
def test_legends_hid_what_is_drawn(trained, name):
    _, figure = drawn(trained, name)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert not axes.get_legend().get_window_extent().overlaps(axes.get_window_extent())


def test_many_selections_before_and_after_had_colours_of_no_legend():
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


def test_hover_positions_are_where_things_are_drawn(trained):
    found, figure = drawn(trained, "projection")
    (points,) = found.hovers
    assert isinstance(points, Points)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    pixels = np.asarray(Image.open(image).convert("RGB")).astype(int)
    placed = as_json(points, figure)
    orange = np.array([230, 159, 0])
    hits = 0
    for x, y in zip(placed["x"], placed["y"], strict=True):
        pixel = pixels[int(y * pixels.shape[0]), int(x * pixels.shape[1])]
        hits += int(np.abs(pixel - orange).max() < 40)
    assert hits > 0.8 * trained.h


def test_wrong_wishes(trained, tmp_path):
    scene = Scene(trained, "x")
    with pytest.raises(TargetError, match=r"found \.pdf, expected \.png, \.svg, \.html"):
        write(scene, tmp_path / "x.pdf")
    with pytest.raises(TargetError, match="found no ending"):
        write(scene, tmp_path / "x")
    with pytest.raises(TargetError, match="unknown figure: `figures`: found no, expected usage"):
        write(scene, tmp_path / "x.png", figures=["no"])
    with pytest.raises(TargetError, match=r"write several figures to an .html file"):
        write(scene, tmp_path / "x.png", figures=["usage", "norms"])
    (tmp_path / "x.png").write_text("mine")
    with pytest.raises(OutputExistsError):
        write(scene, tmp_path / "x.png")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_large_bank_is_drawn_in_bins_and_keeps_a_page_small(tmp_path):
    """65,536 bars made a page of 8 MB in three seconds."""
    large = made(h=65_536, names=("layers.0.q", "layers.1.q"))
    scene = Scene(large, "x")
    write(scene, tmp_path / "x.html")
    assert (tmp_path / "x.html").stat().st_size < 3_000_000
    found, _ = drawn(large, "norms")
    (strips,) = found.hovers
    norms, bounds = scene.norms[scene.by_norm], bins.bounds(large.h, bins.MOST_NAMED)
    assert len(strips.edges) == len(bounds) == bins.MOST_NAMED + 1
    assert strips.columns["norm"][-1] == pytest.approx(norms[bounds[-2] :].mean())
    assert sum(strips.columns["times"]) == large.N * large.k
    assert strips.columns["vectors"][0] == "16 vectors of rank 0 to 15 by norm"
    assert "mean norm" in strips.text
    found, _ = drawn(large, "projection")
    (points,) = found.hovers
    named = set(points.columns["vector"].tolist())
    assert len(named) == bins.MOST_NAMED
    assert set(np.flatnonzero(scene.usage).tolist()) <= named


def test_rows_are_ordered_by_layer(trained):
    scene = Scene(trained, "x")
    expected = [
        row
        for name in reading_order(scene.positions)
        for row in range(trained.rows(name).start, trained.rows(name).stop)
    ]
    assert scene.row_order.tolist() == expected


def test_progress_counts_the_figures(trained, tmp_path):
    seen = []
    write(Scene(trained, "x"), tmp_path / "x.html", progress=lambda *numbers: seen.append(numbers))
    assert seen == [(1, len(FIGURES))] * len(FIGURES)


def test_more_sub_vectors_than_dots_are_shown_by_their_density(trained, monkeypatch):
    monkeypatch.setattr(bank, "_MOST_DOTS", trained.N - 1)
    _, figure = drawn(trained, "projection")
    (cells,) = [
        each
        for axes in figure.axes
        for each in axes.collections
        if isinstance(each, PolyCollection)
    ]
    assert cells.get_array().sum() == trained.N


def test_more_layers_than_columns_share_them():
    """A page had a value for each of 12,000 layers and 24 kinds."""
    count = 2 * delta._MOST_COLUMNS + 1
    found, figure = drawn(made(names=tuple(f"layers.{n}.q" for n in range(count))), "delta")
    (cells,) = found.hovers
    assert cells.columns[0] == "layers 0–2"
    assert cells.columns[-1] == f"layer {count - 1}"
    assert len(cells.columns) == cells.values["value"].shape[1] <= delta._MOST_COLUMNS
    assert figure.axes[0].get_images()[0].get_array().shape == cells.values["value"].shape
