"""Configs of every architecture of transformers, small enough to build quickly."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto

TASKS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "vision-language": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "image classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "sequence to sequence": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "sequence classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "detection": "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
    "speech": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "CTC": "MODEL_FOR_CTC_MAPPING_NAMES",
}
LAYERS = 2
VOCABULARY = 120

_NUMBERS = (
    # (pattern of the key, value); the first match is used
    (r"vocab_size|.*_vocab_size|vocab_size_.*|num_codevectors.*", VOCABULARY),
    (r".*num_labels", None),
    (r"(.*_)?(max_position_embeddings|n_positions|max_source_positions|max_target_positions)", 64),
    (r"type_vocab_size", 2),
    (r"num_(hidden|encoder|decoder|text|vision|block|attention)?_?layers?|(encoder|decoder)_layers"
     r"|n_layers?|num_layers|depth|num_hidden_layers|layers|num_blocks|encoder_num_layers", LAYERS),
    (r"first_k_dense_replace|moe_layer_start_index", 1),
    (r"moe_layer_end_index", 1),
    (r"num_nextn_predict_layers", 0),
    (r"(n_routed_experts|num_experts|num_local_experts|moe_num_experts|n_experts)", 4),
    (r"(n_shared_experts|num_shared_experts|moe_num_shared_experts)", 1),
    (r"(num_experts_per_tok|moe_k|moe_topk|top_k_experts|num_experts_per_token|moe_top_k)", 2),
    (r"(n_group|topk_group|num_expert_groups|n_groups)", 1),
    (r"(.*_)?(num_key_value_heads|n_head_kv|num_kv_heads|kv_n_heads|multi_query_group_num)", 2),
    (r"(.*_)?(num_attention_heads|n_heads?|num_heads|attention_heads|num_query_heads)", 4),
    (r"mamba_n_heads|mamba_num_heads|linear_num_(key|value)_heads|mamba_n_groups", 4),
    (r"(qk_rope_head_dim|rotary_dim|qk_nope_head_dim|v_head_dim|index_head_dim)", 16),
    (r"(.*_)?(head_dim|d_kv|attention_head_dim|kv_channels|head_size|global_head_dim)", 16),
    (r"(q_lora_rank|kv_lora_rank|o_lora_rank)", 16),
    (r"(.*_)?(image_size|img_size|crop_size)", 32),
    (r"(.*_)?(patch_size)", 8),
    (r"(.*_)?(intermediate_size|ffn_dim|d_ff|n_inner|ffn_hidden_size|mlp_dim|inner_dim"
     r"|feed_forward_size|feedforward_dim|shared_expert_intermediate_size|moe_intermediate_size"
     r"|dim_feedforward|ff_dim|intermediate_dim)", 128),
    (r"(.*_)?(hidden_size|d_model|n_embd|embed_dim|hidden_dim|embedding_size|dim|width|out_dim"
     r"|projection_dim|embedding_dim|projection_size|output_dim|output_hidden_size|hidden_channels"
     r"|hidden_size_per_layer_input|encoder_dim|decoder_dim|feature_size|proj_codevector_dim"
     r"|codevector_dim|backbone_hidden_size|word_embed_proj_dim|conv_bias_dim)", 64),
    (r"num_queries", 8),
    (r"num_conv_pos_embeddings|num_conv_pos_embedding_groups", 16),
)  # fmt: skip
_TOKENS = re.compile(r".*(token_id|token_index|_token_ids?|_token)|.*_id")
_SPECIAL = re.compile(
    r"(pad|bos|eos|sep|cls|unk|mask|decoder_start|forced_bos|forced_eos)_token_id"
)


def architectures() -> Iterator[tuple[str, str, str]]:
    """Yield (task, model type, class) of every architecture, each class once."""
    seen = set()
    for task, table in TASKS.items():
        for kind, names in getattr(modeling_auto, table).items():
            for name in (names,) if isinstance(names, str) else names:
                if name not in seen:
                    seen.add(name)
                    yield task, kind, name


def config(cls: type[PretrainedConfig]) -> PretrainedConfig:
    """Return a small config for a class.

    Raises:
        Exception: whatever the class raises for it.
    """
    return cls(**_small(cls(), iter(range(4, VOCABULARY))))


def _small(whole: PretrainedConfig, ids: Iterator[int]) -> dict[str, Any]:
    inner = {
        key: value for key, value in vars(whole).items() if isinstance(value, PretrainedConfig)
    }
    layers = {
        value for key, value in whole.to_dict().items() if _number(key, 10**6) == LAYERS
        and isinstance(value, int)
    }  # fmt: skip
    result: dict[str, Any] = {}
    for key, value in whole.to_dict().items():
        if key in inner or key in ("model_type", "transformers_version", "architectures"):
            continue
        small = _smaller(key, value, layers, ids)
        if small is not value:
            result[key] = small
    for key, value in inner.items():
        result[key] = {**_small(value, ids), "model_type": value.model_type}
    return result


def _smaller(key: str, value: Any, layers: set[int], ids: Iterator[int]) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        if _SPECIAL.fullmatch(key):
            return min(value, 3) if value >= 0 else value
        if _TOKENS.fullmatch(key) and value > VOCABULARY - 1:
            return next(ids)
        number = _number(key, value)
        return value if number is None or number >= value else number
    if isinstance(value, list) and value and len(value) in layers and len(value) > LAYERS:
        return _few(value)
    if isinstance(value, list) and value and all(isinstance(each, int) for each in value):
        return _list(key, value)
    return value


def _few(values: list[Any]) -> list[Any]:
    """Shorten a list with one item per layer, and keep as many kinds of layers as possible."""
    kinds = list(dict.fromkeys(map(str, values)))
    chosen = [next(v for v in values if str(v) == kind) for kind in kinds[:LAYERS]]
    return (chosen + [values[-1]] * LAYERS)[:LAYERS]


def _list(key: str, values: list[int]) -> list[int]:
    if re.fullmatch(r"(.*_)?(depths?|layers|num_blocks|num_layers|layers_per_block)", key):
        return [1 for _ in values]
    if re.fullmatch(r".*(hidden_sizes|embed_dims?|hidden_dim|dims|channels|conv_dim|sizes)", key):
        return [min(value, 32) for value in values] if max(values) > 32 else values
    if re.fullmatch(r"(.*_)?num_(attention_)?heads", key):
        return [min(value, 2) for value in values]
    if re.fullmatch(r"(.*_)?(image_size|img_size)", key):
        return [32 for _ in values]
    if key.endswith("_token_ids") or "token" in key:
        return [min(value, VOCABULARY - 1) for value in values]
    return values


def _number(key: str, value: int) -> int | None:
    for pattern, number in _NUMBERS:
        if re.fullmatch(pattern, key):
            return number
    return None
