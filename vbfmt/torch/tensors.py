"""Conversion of tensors between PyTorch and the format."""

from __future__ import annotations

import torch

from vbfmt.errors import ContentError
from vbfmt.tensors import TORCH, Tensor

_DTYPES = {name: getattr(torch, torch_name) for torch_name, name in TORCH.items()}


def to_format(tensor: torch.Tensor) -> Tensor:
    """Return a tensor of the format with the same dtype and values, in memory of its own.

    Raises:
        ContentError: the format has no such dtype.
    """
    dtype = TORCH.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None:
        raise ContentError("no safetensors dtype", found=tensor.dtype)
    flat = tensor.detach().cpu().clone().contiguous().reshape(-1).view(torch.uint8)
    return Tensor(dtype, tuple(tensor.shape), flat.numpy())


def to_torch(tensor: Tensor) -> torch.Tensor:
    """Return a PyTorch tensor with the same dtype and values, in memory of its own.

    Raises:
        ContentError: PyTorch has no such dtype.
    """
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise ContentError("no PyTorch dtype", found=tensor.dtype)
    return torch.tensor(tensor.data).view(dtype).reshape(tensor.shape)
