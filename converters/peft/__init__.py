"""Read PEFT's VB-LoRA checkpoints in all of PEFT's forms, and write them in its top-k form.

`load_adapter` loads a packed adapter into a transformers model with PEFT.
"""

from vbfmt.converters.peft.folder import from_checkpoint, from_tensors, read, write
from vbfmt.converters.peft.live import load_adapter

__all__ = ["from_checkpoint", "from_tensors", "load_adapter", "read", "write"]
