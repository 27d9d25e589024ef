"""Estimate the cost of adapters before training: a model's layers, and what each method stores.

>>> from vbfmt.estimate import Shape, compare, linears
>>> layers = linears({"model_type": "llama", "hidden_size": 4096, ...})
>>> costs = compare(layers, Shape(h=2048, b=256, k=2, r=4))
"""

from __future__ import annotations

from vbfmt.estimate.architecture import Linear, choose, linears
from vbfmt.estimate.methods import Cost, Ranks, compare, vblora
from vbfmt.estimate.shape import Shape

__all__ = ["Cost", "Linear", "Ranks", "Shape", "choose", "compare", "linears", "vblora"]
