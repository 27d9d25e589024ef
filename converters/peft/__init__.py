"""PEFT's VB-LoRA checkpoints: read in every form that PEFT has written, written in its top-k form.

`load_adapter` loads a packed adapter into a transformers model with PEFT.
"""

from vbfmt.converters.peft.folder import from_checkpoint, from_tensors, read, write
from vbfmt.converters.peft.live import load_adapter

__all__ = ["from_checkpoint", "from_tensors", "load_adapter", "read", "write"]
