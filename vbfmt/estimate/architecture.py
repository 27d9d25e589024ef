"""Find the linear layers of a model from its ``config.json``, without weights or PyTorch.

An architecture is described by the name of its repeated block, and the names and dimensions of the
layers in a block. The names are those of transformers' modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vbfmt.errors import SourceError

_LARGEST_DIMENSION = 1 << 24
MOST_LAYERS = 4096


@dataclass(frozen=True)
class Linear:
    """A linear layer that can be adapted.

    Attributes:
        name: its dotted name in the model.
        in_features, out_features: dimensions of the layer.
        fan_in_fan_out: whether it stores its weight as (in, out), as transformers' Conv1D does.
    """

    name: str
    in_features: int
    out_features: int
    fan_in_fan_out: bool = False

    @property
    def leaf(self) -> str:
        """The last component of the name, which PEFT's ``target_modules`` match."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class _Architecture:
    """An architecture that consists of equal blocks.

    Attributes:
        block: name of a block, with ``{}`` for its number.
        linears: name, input dimension and output dimension of each layer in a block. A dimension is
            a sum of these terms: ``d``, the hidden size; ``f``, the feed-forward size; ``q`` and
            ``kv``, the number of query heads and of key-value heads, times their size.
        keys: config keys of d, f, the number of blocks and the number of heads.
        derived: keys that a config may omit, because they follow from others.
        fan_in_fan_out: whether the layers store their weights as (in, out).
    """

    block: str
    linears: tuple[tuple[str, str, str], ...]
    keys: tuple[str, str, str, str] = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    )
    derived: frozenset[str] = frozenset({"head_dim", "num_key_value_heads"})
    fan_in_fan_out: bool = False


def _bert(block: str) -> _Architecture:
    return _Architecture(
        block,
        (
            ("attention.self.query", "d", "d"),
            ("attention.self.key", "d", "d"),
            ("attention.self.value", "d", "d"),
            ("attention.output.dense", "d", "d"),
            ("intermediate.dense", "d", "f"),
            ("output.dense", "f", "d"),
        ),
    )


def _llama(*derived: str) -> _Architecture:
    return _Architecture(
        "model.layers.{}",
        (
            ("self_attn.q_proj", "d", "q"),
            ("self_attn.k_proj", "d", "kv"),
            ("self_attn.v_proj", "d", "kv"),
            ("self_attn.o_proj", "q", "d"),
            ("mlp.gate_proj", "d", "f"),
            ("mlp.up_proj", "d", "f"),
            ("mlp.down_proj", "f", "d"),
        ),
        derived=frozenset(derived),
    )


_ARCHITECTURES = {
    "bert": _bert("bert.encoder.layer.{}"),
    "roberta": _bert("roberta.encoder.layer.{}"),
    "xlm-roberta": _bert("roberta.encoder.layer.{}"),
    "camembert": _bert("roberta.encoder.layer.{}"),
    "electra": _bert("electra.encoder.layer.{}"),
    "distilbert": _Architecture(
        "distilbert.transformer.layer.{}",
        (
            ("attention.q_lin", "d", "d"),
            ("attention.k_lin", "d", "d"),
            ("attention.v_lin", "d", "d"),
            ("attention.out_lin", "d", "d"),
            ("ffn.lin1", "d", "f"),
            ("ffn.lin2", "f", "d"),
        ),
        keys=("dim", "hidden_dim", "n_layers", "n_heads"),
    ),
    "gpt2": _Architecture(
        "transformer.h.{}",
        (
            ("attn.c_attn", "d", "d+d+d"),
            ("attn.c_proj", "d", "d"),
            ("mlp.c_fc", "d", "f"),
            ("mlp.c_proj", "f", "d"),
        ),
        keys=("n_embd", "n_inner", "n_layer", "n_head"),
        derived=frozenset({"head_dim", "num_key_value_heads", "n_inner"}),
        fan_in_fan_out=True,
    ),
    "gpt_neox": _Architecture(
        "gpt_neox.layers.{}",
        (
            ("attention.query_key_value", "d", "d+d+d"),
            ("attention.dense", "d", "d"),
            ("mlp.dense_h_to_4h", "d", "f"),
            ("mlp.dense_4h_to_h", "f", "d"),
        ),
    ),
    "opt": _Architecture(
        "model.decoder.layers.{}",
        (
            ("self_attn.q_proj", "d", "d"),
            ("self_attn.k_proj", "d", "d"),
            ("self_attn.v_proj", "d", "d"),
            ("self_attn.out_proj", "d", "d"),
            ("fc1", "d", "f"),
            ("fc2", "f", "d"),
        ),
        keys=("hidden_size", "ffn_dim", "num_hidden_layers", "num_attention_heads"),
    ),
    "phi3": _Architecture(
        "model.layers.{}",
        (
            ("self_attn.qkv_proj", "d", "q+kv+kv"),
            ("self_attn.o_proj", "q", "d"),
            ("mlp.gate_up_proj", "d", "f+f"),
            ("mlp.down_proj", "f", "d"),
        ),
    ),
    "llama": _llama("head_dim", "num_key_value_heads"),
    "mistral": _llama("head_dim"),
    "qwen2": _llama("head_dim"),
    "qwen3": _llama(),
    "gemma": _llama(),
    "gemma2": _llama(),
    "gemma3_text": _llama(),
    "granite": _llama("head_dim", "num_key_value_heads"),
    "olmo": _llama("head_dim", "num_key_value_heads"),
    "olmo2": _llama("head_dim", "num_key_value_heads"),
    "olmo3": _llama("head_dim", "num_key_value_heads"),
    "smollm3": _llama("head_dim"),
    "starcoder2": _Architecture(
        "model.layers.{}",
        (
            ("self_attn.q_proj", "d", "q"),
            ("self_attn.k_proj", "d", "kv"),
            ("self_attn.v_proj", "d", "kv"),
            ("self_attn.o_proj", "q", "d"),
            ("mlp.c_fc", "d", "f"),
            ("mlp.c_proj", "f", "d"),
        ),
        derived=frozenset({"head_dim"}),
    ),
}

KNOWN = tuple(_ARCHITECTURES)
"""Every ``model_type`` that `linears` knows."""

_FUSED = frozenset(["c_attn", "query_key_value", "qkv_proj"])
_QUERY_AND_VALUE = frozenset(["query", "value", "q_proj", "v_proj", "q_lin", "v_lin"])


def linears(config: Mapping[str, Any]) -> tuple[Linear, ...]:
    """Return the linear layers of all blocks, block by block, without embeddings and heads.

    Args:
        config: the content of ``config.json``.

    Raises:
        SourceError: ``model_type`` is unknown, or a dimension is missing or out of range.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _ARCHITECTURES:
        raise SourceError(
            "unknown kind of model",
            part="model_type",
            found=repr(kind),
            expected=f"one of {', '.join(KNOWN)}",
        )
    architecture = _ARCHITECTURES[kind]
    sizes, blocks = _dimensions(config, architecture)
    return tuple(
        Linear(
            f"{architecture.block.format(number)}.{name}",
            _sum(sizes, inner),
            _sum(sizes, outer),
            architecture.fan_in_fan_out,
        )
        for number in range(blocks)
        for name, inner, outer in architecture.linears
    )


def choose(layers: Sequence[Linear], targets: str) -> tuple[Linear, ...]:
    """Return the layers that `targets` names.

    Args:
        targets: ``all``, ``qv`` (query and value), or leaf names separated by commas, as in PEFT's
            ``target_modules``.

    Raises:
        SourceError: no layer has one of these names.
    """
    if targets == "all":
        return tuple(layers)
    wanted = _QUERY_AND_VALUE if targets == "qv" else {name.strip() for name in targets.split(",")}
    leaves = list(dict.fromkeys(layer.leaf for layer in layers))
    missing = sorted(wanted.difference(leaves)) if targets != "qv" else []
    chosen = tuple(layer for layer in layers if layer.leaf in wanted)
    if missing or not chosen:
        raise SourceError(
            "no such layer in this model",
            part="`targets`",
            found=", ".join(name or "an empty name" for name in missing) or targets,
            expected=f"all, or some of {', '.join(leaves)}",
            advice=_advice_for_fused(leaves) if targets == "qv" else None,
        )
    return chosen


def _advice_for_fused(leaves: Iterable[str]) -> str | None:
    fused = [leaf for leaf in leaves if leaf in _FUSED]
    return f"query and value are parts of one layer: `targets={fused[0]}`" if fused else None


def checked(value: Any, key: str, largest: int = _LARGEST_DIMENSION) -> int:
    """Return `value` if it is an integer from 1 to `largest`.

    Raises:
        SourceError: `value` is anything else. The error names `key`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        found = "nothing" if value is None else repr(value)[:40]
        raise SourceError(
            "a dimension is missing or wrong",
            part=key,
            found=found,
            expected=f"a whole number from 1 to {largest}",
        )
    return value


def _dimensions(
    config: Mapping[str, Any], architecture: _Architecture
) -> tuple[dict[str, int], int]:
    hidden, inner, layers, heads = architecture.keys
    d = checked(config.get(hidden), hidden)
    count = checked(config.get(heads), heads)

    def derivable(key: str, otherwise: int) -> int:
        given = config.get(key)
        return otherwise if given is None and key in architecture.derived else checked(given, key)

    size = derivable("head_dim", max(d // count, 1))
    grouped = any("kv" in outer for _, _, outer in architecture.linears)
    groups = derivable("num_key_value_heads", count) if grouped else count
    sizes = {"d": d, "f": derivable(inner, 4 * d), "q": count * size, "kv": groups * size}
    return sizes, checked(config.get(layers), layers, MOST_LAYERS)


def _sum(sizes: Mapping[str, int], terms: str) -> int:
    return sum(sizes[term] for term in terms.split("+"))


def dimensions(layers: Iterable[Linear]) -> list[int]:
    """Return every dimension that b must divide, in ascending order."""
    return sorted({n for layer in layers for n in (layer.in_features, layer.out_features)})
