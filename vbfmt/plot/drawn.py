"""The result of a drawing function."""

from __future__ import annotations

from dataclasses import dataclass

from vbfmt.plot.hover import Hover


@dataclass(frozen=True)
class Drawn:
    """A finished figure.

    Attributes:
        title: what the figure shows.
        caption: the main result in words and numbers, also for readers who cannot see the figure.
        hovers: values that a page shows under the pointer.
    """

    title: str
    caption: str
    hovers: tuple[Hover, ...]
