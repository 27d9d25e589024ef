"""What a drawing function gives back beside the picture itself."""

from __future__ import annotations

from dataclasses import dataclass

from vbfmt.plot.hover import Hover


@dataclass(frozen=True)
class Drawn:
    """A finished figure.

    Attributes:
        title: what it shows.
        caption: what there is to see, in words with the numbers: for those who cannot see it, too.
        hovers: values to point at.
    """

    title: str
    caption: str
    hovers: tuple[Hover, ...]
