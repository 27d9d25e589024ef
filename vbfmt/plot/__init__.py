"""Draw pictures of an adapter with matplotlib (``pip install 'vbfmt[plot]'``).

>>> from vbfmt.plot import Scene, write
>>> write(Scene(adapter, "adapter.vblora"), "adapter.html")
"""

from __future__ import annotations

from vbfmt.plot.figures import FIGURES
from vbfmt.plot.output import KINDS, write
from vbfmt.plot.scene import Scene

__all__ = ["FIGURES", "KINDS", "Scene", "write"]
