"""The style of pictures: simple axes, and colours that colour-blind readers can distinguish."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colorbar import Colorbar
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray

BLUE, ORANGE, GREEN, VERMILLION, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
"""Colours of the palette of Okabe and Ito (2008)."""
INK, GREY, FAINT = "#222222", "#767676", "#DDDDDD"
SEQUENTIAL = "cividis"
"""Colour map for amounts: uniform in lightness, also for red-green colour blindness."""
ON_PAPER = "Blues"
"""Colour map for amounts that are mostly 0: from white to a dark hue."""
AROUND_EVEN = "PuOr_r"
"""Colour map for deviations from an even share: purple below, orange above, white at 0."""

BY_INDEX = "index of the vector in the bank"
BY_NORM = "vectors of the bank, ranked by norm (0: the longest)"
"""Labels of the two axes along which vectors are ordered. ``vector 7`` is always an index."""

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a name from a file does not begin a formula
    "svg.fonttype": "path",
    "svg.hashsalt": "vbfmt",  # the same picture gives the same bytes
    "legend.frameon": False,
}


@contextmanager
def settings() -> Iterator[None]:
    """Apply the matplotlib settings of our pictures in the block."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def title(axes: Axes, text: str, below: str) -> None:
    """Write a bold title at the left, and a grey caption below it."""
    axes.set_title(text, loc="left", fontweight="bold", fontsize=12, pad=24)
    axes.annotate(
        below,
        (0, 1),
        xytext=(0, 7),
        xycoords="axes fraction",
        textcoords="offset points",
        color=GREY,
        fontsize=9.5,
        in_layout=False,
        annotation_clip=False,
    )


def cells(axes: Axes, values: NDArray[Any], **settings: Any) -> AxesImage:
    """Draw a cell for each value, as `Axes.imshow` does. The cells fill the axes."""
    axes.spines[:].set_visible(False)
    return axes.imshow(values, aspect="auto", interpolation="none", **settings)


def colour_bar(axes: Axes, image: AxesImage, label: str, **settings: Any) -> Colorbar:
    """Draw the scale of an image's colours beside its axes."""
    bar = axes.figure.colorbar(image, ax=axes, **settings)
    bar.set_label(label)
    bar.outline.set_visible(False)
    return bar


def whole_numbers(axis: Axis) -> None:
    """Set ticks at whole numbers only, for an axis of counts or indices."""
    axis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)))


def legend_above(axes: Axes, **settings: Any) -> None:
    """Draw a legend at the right of the title, where it hides nothing."""
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=2.1, fontsize=9,
        handletextpad=0.5, columnspacing=1.2, **settings,
    )  # fmt: skip
