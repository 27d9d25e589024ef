"""PEFT's VB-LoRA checkpoints: read in every form that PEFT has written, written in its top-k form.

`load_adapter` puts a packed adapter straight into a transformers model by PEFT.
"""

from vbfmt.converters.peft.folder import from_checkpoint, from_tensors, read, write
from vbfmt.converters.peft.live import load_adapter

__all__ = ["from_checkpoint", "from_tensors", "load_adapter", "read", "write"]
