"""Adapters and their figures."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import ROOT
from vbfmt import Adapter, Module
from vbfmt._math.admixture import canonical_rows
from vbfmt.converters import peft

matplotlib = pytest.importorskip("matplotlib")

HOSTILE = "<script>pwned=1</script><img src=x onerror=pwned=1>\"'&]]>--><b>$\\frac{$\u202e"
"""A name with markup, a formula, and a mark that reverses the direction of text."""


@pytest.fixture(scope="session")
def trained() -> Adapter:
    """The trained adapter of the demo."""
    return peft.read(ROOT / "tests" / "data" / "minilm-vblora")


def made(
    *,
    h: int = 6,
    b: int = 4,
    k: int = 2,
    names: tuple[str, ...] = ("layers.0.q",),
    scale: float = 1,
    seed: int = 0,
    base_model: str | None = None,
) -> Adapter:
    """A random adapter."""
    rng = np.random.default_rng(seed)
    rows = {}
    for name in names:
        module = Module(name, 2 * b, 3 * b, 2)
        indices = np.argsort(rng.random((module.rows(b), h)), axis=1)[:, :k]
        rows[module] = canonical_rows(indices, rng.dirichlet(np.ones(k), len(indices)), h)
    bank = (rng.standard_normal((h, b)) * scale).astype("f4")
    return Adapter.from_rows(bank, rows, base_model=base_model)


def drawn(adapter, name, before=None):
    """Return the data that a figure shows of an adapter, and the figure."""
    from matplotlib.figure import Figure

    from vbfmt.plot import FIGURES, Scene
    from vbfmt.plot.style import settings

    with settings():
        figure = Figure(layout="constrained")
        return FIGURES[name].draw(figure, Scene(adapter, "x", before)), figure
