"""Make tiny bases and PEFT's VB-LoRA adapters for them with transformers 4: PYTHON FILE FOLDER.

This runs in an environment with transformers 4 and without vbfmt. For every model family that
changed names between versions 4 and 5, it writes the base, the adapter, and PEFT's own merge.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import peft
import torch
import transformers

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TEXT = {**SIZES, "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64}
CLIP = {**SIZES, "image_size": 16, "patch_size": 8, "projection_dim": 32}
ROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
VISION = {"hidden_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 8}


def of(name: str, **settings: Any) -> Callable[[], Any]:
    """Return a function that makes a model of this class."""

    def made() -> Any:
        cls = getattr(transformers, name)
        return cls(cls.config_class(**settings))

    return made


FAMILIES = {
    "llava": of(
        "LlavaForConditionalGeneration",
        text_config={"model_type": "llama", **TEXT},
        vision_config={"model_type": "clip_vision_model", **CLIP},
        image_token_index=5,
    ),
    "llava_next": of(
        "LlavaNextForConditionalGeneration",
        text_config={"model_type": "mistral", **TEXT},
        vision_config={"model_type": "clip_vision_model", **CLIP},
        image_token_index=5,
    ),
    "qwen2_vl": of(
        "Qwen2VLForConditionalGeneration", **TEXT, **ROPE, vision_config={**VISION, "mlp_ratio": 2}
    ),
    "qwen2_5_vl": of(
        "Qwen2_5_VLForConditionalGeneration",
        **TEXT,
        **ROPE,
        vision_config={
            **VISION,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
    ),
    "gemma3": of(
        "Gemma3ForConditionalGeneration",
        text_config={**TEXT, "head_dim": 8},
        vision_config={**SIZES, "image_size": 16, "patch_size": 8},
        image_token_index=5,
        mm_tokens_per_image=4,
    ),
    "paligemma": of(
        "PaliGemmaForConditionalGeneration",
        text_config={"model_type": "gemma", **TEXT, "head_dim": 8},
        vision_config={"model_type": "siglip_vision_model", **CLIP},
        image_token_index=5,
    ),
    "mistral3": of(
        "Mistral3ForConditionalGeneration",
        text_config={"model_type": "mistral", **TEXT, "head_dim": 8},
        vision_config={"model_type": "pixtral", **SIZES, "image_size": 16, "patch_size": 8},
        image_token_index=5,
    ),
    "mixtral": of("MixtralForCausalLM", **TEXT, num_local_experts=3, num_experts_per_tok=2),
    "qwen2_moe": of(
        "Qwen2MoeForCausalLM",
        **TEXT,
        num_experts=3,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=32,
    ),
    "deepseek_v3": of(
        "DeepseekV3ForCausalLM",
        **TEXT,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    ),
    "vit": of("ViTForImageClassification", **SIZES, image_size=16, patch_size=8),
}


def layers(model: Any) -> list[str]:
    """Return the full names of linear layers of all kinds whose features are multiples of 8."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not model.get_output_embeddings()
        and not any(size % 8 for size in module.weight.shape)
    ]


def make(name: str, folder: str) -> None:
    """Write ``base``, ``adapter`` and ``merged`` of a family."""
    torch.manual_seed(0)
    model = FAMILIES[name]()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.tie_weights()
    model.save_pretrained(os.path.join(folder, "base"))
    config = peft.VBLoRAConfig(
        r=2,
        num_vectors=16,
        vector_length=8,
        init_vector_bank_bound=0.5,
        target_modules=layers(model),
    )
    adapted = peft.get_peft_model(model, config)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):  # any gradients are sufficient
        torch.manual_seed(step)
        sum((p * torch.randn_like(p)).sum() for p in adapted.parameters()).backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.save_pretrained(os.path.join(folder, "adapter"))
    adapted.merge_and_unload().save_pretrained(os.path.join(folder, "merged"))


def main() -> None:
    """Write every family into a folder of its own."""
    assert transformers.__version__.startswith("4."), transformers.__version__
    for name in FAMILIES:
        make(name, os.path.join(sys.argv[1], name))
        print(name, flush=True)


if __name__ == "__main__":
    main()
