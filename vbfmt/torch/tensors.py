"""Convert tensors between PyTorch and the format."""

from __future__ import annotations

import math

import torch

from vbfmt.errors import ContentError, ModelError
from vbfmt.tensors import TORCH, Tensor

_DTYPES = {name: getattr(torch, torch_name) for torch_name, name in TORCH.items()}


def to_format(tensor: torch.Tensor) -> Tensor:
    """Copy a PyTorch tensor to a tensor of the format, with the same dtype and values.

    Raises:
        ContentError: the format has no such dtype.
    """
    dtype = TORCH.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None:
        raise ContentError("no safetensors dtype", found=tensor.dtype)
    flat = tensor.detach().cpu().clone().contiguous().reshape(-1).view(torch.uint8)
    return Tensor(dtype, tuple(tensor.shape), flat.numpy())


def to_torch(tensor: Tensor) -> torch.Tensor:
    """Copy a tensor of the format to a PyTorch tensor, with the same dtype and values.

    Raises:
        ContentError: PyTorch has no such dtype.
    """
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise ContentError("no PyTorch dtype", found=tensor.dtype)
    return torch.tensor(tensor.data).view(dtype).reshape(tensor.shape)


def cast_like(tensor: torch.Tensor, original: torch.Tensor, name: str) -> torch.Tensor:
    """Return a tensor on the device and in the dtype of the one that it replaces.

    Args:
        name: its name, for messages.

    Raises:
        ModelError: a finite value is too large for that dtype, or all of a matrix are too small for
            its precision.
    """
    found = tensor.to(original.device, original.dtype)
    if tensor.dtype == found.dtype or not (tensor.numel() and found.is_floating_point()):
        return found
    largest = tensor.abs().nan_to_num(0, posinf=0).max().item()
    bounds = torch.finfo(found.dtype)
    too_small = tensor.ndim > 1 and 0 < largest < bounds.smallest_normal
    if too_small or math.isinf(torch.tensor(largest, dtype=tensor.dtype).to(found.dtype).item()):
        word = str(found.dtype).removeprefix("torch.")
        raise ModelError(
            f"the adapter has a tensor that is too {'small' if too_small else 'large'} for {word}",
            part=name,
            found=f"at most {largest:.3g}",
            expected=f"at least {bounds.smallest_normal:.3g}"
            if too_small
            else f"at most {bounds.max:.5g}",
            advice=f"load the model in {'bfloat16' if word == 'float16' else 'float32'}",
        )
    return found
