"""Full weights: a base model with adapters merged into it, tensor by tensor, never built as a model.

>>> from vbfmt.converters import merge
>>> plan = merge.plan(adapter, "base")                  # everything checked, nothing written
>>> merge.write(plan, "merged")                         # a folder for transformers, or nothing
>>> for name, tensor in merge.tensors(plan): ...        # or the tensors, one at a time

Several adapters merge as the weighted sum of their ΔW.
"""

from vbfmt.converters.merge.folder import require_place, tensors, write
from vbfmt.converters.merge.layout import File, Item, Layout
from vbfmt.converters.merge.plan import Plan, plan

__all__ = ["File", "Item", "Layout", "Plan", "plan", "require_place", "tensors", "write"]
