"""Tokens without an adapter, in batches that also have tokens with one.

vLLM marks them with the index -1. Until 0.33 its functions for CPUs took that for the last adapter,
and answered for the base model with it (vllm-project/vllm#48421).
"""

from __future__ import annotations

import functools
import logging
from typing import Any

_logger = logging.getLogger("vllm.vbfmt")


def install() -> None:
    """Correct vLLM's function for CPUs, where it is wrong."""
    from vllm.lora.ops.torch_ops import lora_ops

    if not _is_wrong(lora_ops.bgmv_shrink):
        return
    from vllm.lora.punica_wrapper import punica_cpu

    original = lora_ops.bgmv_shrink

    @functools.wraps(original)
    def bgmv_shrink(
        inputs: Any, lora_b_weights: Any, output_tensor: Any, lora_indices_tensor: Any, *rest: Any
    ) -> None:
        """With no input, the last adapter adds nothing."""
        of_an_adapter = (lora_indices_tensor >= 0).unsqueeze(-1)
        original(
            inputs.masked_fill(~of_an_adapter, 0),
            lora_b_weights,
            output_tensor,
            lora_indices_tensor,
            *rest,
        )

    lora_ops.bgmv_shrink = bgmv_shrink
    punica_cpu.bgmv_shrink = bgmv_shrink
    _logger.info("vLLM's CPU LoRA function corrected: the base model in batches with adapters")


def _is_wrong(bgmv_shrink: Any) -> bool:
    """Return whether an adapter has an effect on a token that has none."""
    import torch

    output = torch.zeros(1, 1)
    bgmv_shrink(torch.ones(1, 1), torch.ones(1, 1, 1), output, torch.tensor([-1]))
    return bool(output.any())
