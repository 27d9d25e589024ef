"""Correct a vLLM function for CPUs, for tokens without an adapter in batches with adapters.

vLLM gives such tokens the index -1. Before version 0.33, its CPU functions applied the last adapter
to them, so the base model's answers were wrong (vllm-project/vllm#48421).
"""

from __future__ import annotations

import functools
import logging
from typing import Any

_logger = logging.getLogger("vllm.vbfmt")


def install() -> None:
    """Replace vLLM's CPU function if it is wrong."""
    from vllm.lora.ops.torch_ops import lora_ops

    if not _is_wrong(lora_ops.bgmv_shrink):
        return
    from vllm.lora.punica_wrapper import punica_cpu

    original = lora_ops.bgmv_shrink

    @functools.wraps(original)
    def bgmv_shrink(
        inputs: Any, lora_b_weights: Any, output_tensor: Any, lora_indices_tensor: Any, *rest: Any
    ) -> None:
        """Set the inputs of tokens without an adapter to zero, so that the last adapter adds
        nothing."""
        has_adapter = (lora_indices_tensor >= 0).unsqueeze(-1)
        original(
            inputs.masked_fill(~has_adapter, 0),
            lora_b_weights,
            output_tensor,
            lora_indices_tensor,
            *rest,
        )

    lora_ops.bgmv_shrink = bgmv_shrink
    punica_cpu.bgmv_shrink = bgmv_shrink
    _logger.info("corrected vLLM's CPU LoRA function for tokens without an adapter")


def _is_wrong(bgmv_shrink: Any) -> bool:
    """Return whether the function applies an adapter to a token that has none."""
    import torch

    output = torch.zeros(1, 1)
    bgmv_shrink(torch.ones(1, 1), torch.ones(1, 1, 1), output, torch.tensor([-1]))
    return bool(output.any())
