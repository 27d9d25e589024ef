"""Writing safetensors files from tensors in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vbfmt.converters._files import safetensors
from vbfmt.tensors import Tensor


def write_tensors(path: Any, tensors: Mapping[str, Tensor]) -> int:
    """Write a safetensors file with the ``format`` entry that transformers requires."""
    specs = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    contents = (tensor.data.data for tensor in tensors.values())
    return safetensors.write(path, specs, contents, metadata={"format": "pt"})
