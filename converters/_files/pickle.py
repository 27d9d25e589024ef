"""Tensors of PyTorch's own file format (``.bin``, ``.pt``): a pickle, read without running it."""

from __future__ import annotations

import math
import os
import warnings
import zipfile

from vbfmt.errors import SourceError
from vbfmt.tensors import TORCH, Tensor

_COPIES = 2
"""Tensors that are not row-major are copied: at most so many times the file's length of them."""


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors by name.

    Raises:
        SourceError: torch is missing, the file is no state dict, or it holds more than tensors:
            it is opened with ``weights_only=True``, which refuses to run code.
    """
    try:
        import torch
    except ImportError:
        raise SourceError(
            "a pickle needs PyTorch to be read", file=path, advice="pip install 'vbfmt[torch]'"
        ) from None
    try:
        # Mapped, so that weights larger than memory can be read; PyTorch's format of before 2020
        # cannot be.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            state = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except OSError as error:
        raise SourceError("cannot read", file=path, found=error.strerror) from None
    except Exception as error:  # noqa: BLE001 - whatever a damaged or hostile pickle provokes
        raise SourceError(
            "not a pickle of tensors alone: refused",
            file=path,
            found=_reason(error),
            expected="a state dict that torch.load(weights_only=True) reads",
            advice="convert it to safetensors where you trust it",
        ) from None
    if not isinstance(state, dict):
        raise SourceError(
            "not a state dict", file=path, found=type(state).__name__, expected="tensors by name"
        )
    tensors: dict[str, Tensor] = {}
    copied = 0
    for name, value in state.items():
        dtype = TORCH.get(str(getattr(value, "dtype", "")).removeprefix("torch."))
        plain = dtype is not None and value.layout is torch.strided and value.device.type == "cpu"
        if dtype is None or not plain or not isinstance(name, str):
            raise SourceError(
                "not a plain tensor", file=path, part=str(name), found=type(value).__name__
            )
        # An expanded tensor of a few bytes can claim more elements than any memory holds.
        length = math.prod(value.shape) * value.element_size()
        copied += 0 if value.is_contiguous() and not value.is_neg() else length
        if length > value.untyped_storage().nbytes() or copied > _COPIES * os.path.getsize(path):
            raise SourceError(
                "tensors with more elements than the file holds",
                file=path,
                part=name,
                found=f"{length} bytes of {value.untyped_storage().nbytes()} stored",
                expected="every element stored",
            )
        flat = value.detach().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
        tensors[name] = Tensor(dtype, tuple(value.shape), flat)
    return tensors


def _reason(error: Exception) -> str:
    """What PyTorch has against a file, without its advice to load it all the same."""
    lines = str(error).splitlines() or ["nothing in it"]
    line = next((line for line in lines if "unsupported" in line.lower()), lines[0])
    return f"{type(error).__name__}: {line.rpartition('WeightsUnpickler error: ')[2][:100]}"
