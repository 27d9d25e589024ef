"""Merge adapters into the weights of a base model, tensor by tensor, without building the model.

>>> from vbfmt.converters import merge
>>> plan = merge.plan(adapter, "base")                  # check everything, write nothing
>>> merge.write(plan, "merged")                         # write a folder that transformers loads
>>> for name, tensor in merge.tensors(plan): ...        # or get the tensors one at a time

If there are several adapters, the weighted sum of their ΔW is merged.
"""

from vbfmt.converters.merge.folder import require_output, write
from vbfmt.converters.merge.layout import File, Item, Layout
from vbfmt.converters.merge.plan import Plan, plan
from vbfmt.converters.merge.stream import tensors

__all__ = ["File", "Item", "Layout", "Plan", "plan", "require_output", "tensors", "write"]
