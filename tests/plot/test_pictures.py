"""Every figure of unusual adapters, in every file format."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from tests.plot.conftest import HOSTILE, drawn, made
from vbfmt.analysis.module_names import reading_order
from vbfmt.errors import ContentError, OutputExistsError, TargetError
from vbfmt.plot import FIGURES, Scene, bins, write
from vbfmt.plot.drawn import Points, as_json
from vbfmt.plot.style import BY_INDEX, BY_NORM

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


@pytest.mark.parametrize("kind", ODD)
def test_every_figure_of_unusual_adapters(kind, tmp_path):
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
def test_a_character_missing_in_the_font_gives_no_warning(kind, tmp_path):
    adapter = made(names=("layers.0.\U000143a4\u4e2d", "layers.1.\U000143a4\u4e2d"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(Scene(adapter, "x"), tmp_path / f"x.{kind}")


@pytest.mark.parametrize("name", FIGURES)
def test_axes_have_labels(trained, name):
    _, figure = drawn(trained, name)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    labels = [a.get_xlabel() for a in figure.axes]
    assert any(labels)
    ticks = [text.get_text() for text in axes.get_yticklabels()]
    sideways = [axes.get_ylabel(), figure.get_supylabel(), *ticks]
    assert any(sideways)
    assert axes.get_title(loc="left")


def test_captions_and_axes_name_vectors_in_the_same_way(trained):
    """``vector 7`` always means an index. If an axis is sorted by norm, captions also give the
    rank."""
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


def test_a_page_is_a_picture_of_that_size(trained, tmp_path):
    write(Scene(trained, "x"), tmp_path / "page.png")
    write(Scene(trained, "x"), tmp_path / "one.png", figures=["selection"])
    page, one = (Image.open(tmp_path / f"{name}.png") for name in ("page", "one"))
    assert page.width == 1700
    assert page.height in (2069, 2070)  # Matplotlib 3.8 rounds differently
    assert one.width > 2000
    # The picture has more than one colour.
    assert len(np.unique(np.asarray(page.convert("L")))) > 50


@pytest.mark.parametrize("kind", ["png", "svg", "html"])
def test_the_same_adapter_gives_the_same_bytes(trained, tmp_path, kind):
    for name in ("a", "b"):
        write(Scene(trained, "x"), tmp_path / f"{name}.{kind}", figures=["usage"])
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_before_must_be_of_the_same_model():
    with pytest.raises(ContentError, match=r"module layers\.0\.k: found .*, expected layers\.0\.q"):
        Scene(made(), "x", made(names=("layers.0.k",)))


def test_before_must_be_of_the_same_shape(trained):
    with pytest.raises(ContentError, match="`before` needs the same model"):
        Scene(made(), "x", trained)


@pytest.mark.parametrize("kind", ["one vector", "k = h", "many kinds"])
@pytest.mark.parametrize("name", ["usage", "norms", "depth", "kinds", "selection"])
def test_axes_of_counts_show_integers(kind, name):
    _, figure = drawn(ODD[kind], name)
    figure.draw_without_rendering()
    axes = figure.axes[len(figure.axes) - 1 if name == "depth" else 0]
    axis = axes.yaxis if name == "selection" else axes.xaxis
    ticks = axis.get_ticklocs()
    assert len(ticks)
    assert all(tick == round(tick) for tick in ticks)


@pytest.mark.parametrize("name", ["usage", "projection"])
def test_legends_do_not_cover_the_data(trained, name):
    _, figure = drawn(trained, name)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert not axes.get_legend().get_window_extent().overlaps(axes.get_window_extent())


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


def test_impossible_plots_are_refused(trained, tmp_path):
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


def test_a_large_bank_is_drawn_in_bins_so_that_the_page_is_small(tmp_path):
    """Earlier, 65,536 bars gave a page of 8 MB after three seconds."""
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
