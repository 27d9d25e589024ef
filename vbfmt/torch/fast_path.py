"""Disable PyTorch's fast path of Transformer encoders, which bypasses the adapted layers.

In evaluation, `nn.TransformerEncoderLayer` passes its layers' weights to one fused kernel, and
`nn.TransformerEncoder` packs a padded batch into a nested tensor for that kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vbfmt.torch.admixture import Admixture
from vbfmt.torch.linear import VBLoRALinear


def disable_fast_path(layer: VBLoRALinear) -> None:
    """Make an encoder layer call its sub-layer `layer`: a hook on any sub-layer disables the fast
    path."""
    layer.register_forward_pre_hook(_no_change)


def keep_batches_padded(root: nn.Module) -> list[RemovableHandle]:
    """Register hooks that keep encoders from packing a batch that needs a gradient.

    Outside the fast path, attention does not support nested tensors that require a gradient.
    Encoders check only whether the base's weights require one, and do not notice a trainable
    adapter.
    """
    encoders = [module for module in root.modules() if isinstance(module, nn.TransformerEncoder)]
    return [
        encoder.register_forward_pre_hook(_show_the_gradient, with_kwargs=True)
        for encoder in encoders
    ]


def _no_change(module: nn.Module, args: Any) -> None:
    return None


def _show_the_gradient(
    encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Make the input require a gradient if an adapter in the encoder is trainable."""
    if encoder.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None  # no fast path then, or no gradient
    if not any(_trains(module) for module in encoder.modules()):
        return None
    if args:
        return (_requiring_gradient(args[0]), *args[1:]), kwargs
    if "src" in kwargs:
        return args, {**kwargs, "src": _requiring_gradient(kwargs["src"])}
    return None  # PyTorch reports what is missing


def _trains(module: nn.Module) -> bool:
    return isinstance(module, VBLoRALinear) and isinstance(module.update(), Admixture)


def _requiring_gradient(src: Tensor) -> Tensor:
    return src if src.requires_grad else src.detach().requires_grad_()
