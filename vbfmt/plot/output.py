"""Write pictures to files: PNG, SVG, or one HTML page that works offline."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from vbfmt._files import PathLike, storage
from vbfmt.errors import TargetError
from vbfmt.plot import html, style
from vbfmt.plot.drawn import Drawn, as_json
from vbfmt.plot.figures import FIGURES
from vbfmt.plot.scene import Scene, shortened

KINDS = ("png", "svg", "html")
"""Endings of the files that `write` can write."""

_ALONE = (9.0, 5.4)
_ALONE_WIDE = (17.0, 5.6)
_DPI = 130
_PAGE_WIDTH = 17.0
_PAGE_ROWS = (("usage", "norms"), ("depth", "kinds"), ("selection",), ("projection", "delta"))
_ROW_HEIGHTS = (4.2, 5.2, 4.8, 5.6)


def write(
    scene: Scene,
    path: PathLike,
    *,
    figures: Sequence[str] = (),
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Draw the scene to a file, which is written completely or not at all.

    Args:
        path: the file, which ends with .png, .svg or .html.
        figures: names in `FIGURES`. If empty, all figures are drawn on one page.
        progress: called with 1 and the number of figures after each figure.

    Returns:
        number of bytes written.

    Raises:
        TargetError: `path` has another ending, a figure is unknown, or several are given for a PNG
            or SVG.
        OutputExistsError: `path` exists and `overwrite` is not set.
        StorageError: the operating system reported an error.
    """
    kind = os.path.splitext(os.fspath(path))[1].lower().removeprefix(".")
    if kind not in KINDS:
        raise TargetError(
            "unknown kind of picture",
            file=path,
            found=f".{kind}" if kind else "no ending",
            expected=", ".join(f".{known}" for known in KINDS),
        )
    unknown = [name for name in figures if name not in FIGURES]
    if unknown:
        raise TargetError(
            "unknown figure", part="`figures`", found=unknown[0], expected=", ".join(FIGURES)
        )
    if not overwrite:
        storage.require_absent(path)
    names = tuple(figures) or tuple(FIGURES)

    def after_each() -> None:
        if progress is not None:
            progress(1, len(names))

    with style.settings():
        if kind == "html":
            content = _html(scene, names, after_each)
        else:
            content = _save(_picture(scene, figures, after_each), kind)
    return storage.write(path, [content], overwrite=overwrite)


def _picture(scene: Scene, figures: Sequence[str], after_each: Callable[[], None]) -> Figure:
    if not figures:
        return _page(scene, after_each)
    if len(figures) > 1:
        raise TargetError(
            "a picture has one figure or all of them",
            part="`figures`",
            found=", ".join(figures),
            advice="write several figures to an .html file",
        )
    return _alone(scene, figures[0])[0]


def _alone(scene: Scene, name: str) -> tuple[Figure, Drawn]:
    picture = FIGURES[name]
    figure = Figure(figsize=_ALONE_WIDE if picture.wide else _ALONE, dpi=_DPI, layout=_layout())
    return figure, picture.draw(figure, scene)


def _page(scene: Scene, after_each: Callable[[], None]) -> Figure:
    head = 0.9
    figure = Figure(figsize=(_PAGE_WIDTH, head + sum(_ROW_HEIGHTS)), dpi=100, layout=_layout())
    bands = _split(figure, 1 + len(_PAGE_ROWS), 1, height_ratios=(head, *_ROW_HEIGHTS))
    for text, y, size, colour in (
        (shortened(os.path.basename(scene.name), 80), 0.72, 20, style.INK),
        (scene.heading(), 0.28, 12, style.GREY),
    ):
        bands[0].text(
            0.012, y, text, fontsize=size, va="center", color=colour,
            fontweight="bold" if size == 20 else "normal",
        )  # fmt: skip
    for band, names in zip(bands[1:], _PAGE_ROWS, strict=True):
        parts = _split(band, 1, len(names))
        for part, name in zip(parts, names, strict=True):
            FIGURES[name].draw(part, scene)
            after_each()
    return figure


def _split(figure: Figure | SubFigure, rows: int, columns: int, **settings: Any) -> list[SubFigure]:
    parts: Any = figure.subfigures(rows, columns, squeeze=False, **settings)
    return list(parts.reshape(-1))


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.14)


def _html(scene: Scene, figures: Sequence[str], after_each: Callable[[], None]) -> bytes:
    parts, hovers = [], {}
    for name in figures:
        figure, drawn = _alone(scene, name)
        svg = _save(figure, "svg").decode()
        label = f"{drawn.title}: {drawn.caption}"
        parts.append(html.figure(name, label, svg, wide=FIGURES[name].wide))
        hovers[name] = [as_json(hover, figure) for hover in drawn.hovers]
        after_each()
    title = shortened(os.path.basename(scene.name), 120)
    return html.page(title, scene.heading(), parts, hovers).encode()


def _save(figure: Figure, kind: str) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # Names from files may have any character; one that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        # A date and a version would make the files of two runs differ.
        if kind == "svg":
            # `savefig` would draw the figure twice, once for the layout alone.
            canvas: Any = FigureCanvasSVG(figure)
            canvas.print_svg(stream, metadata={"Date": None, "Creator": "vbfmt"})
        else:
            figure.savefig(stream, format=kind, metadata={"Software": "vbfmt"})
    return stream.getvalue()
