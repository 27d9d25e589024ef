"""Linear layers from a config, compared with the models that transformers builds."""

from __future__ import annotations

import pytest

from vbfmt.errors import SourceError
from vbfmt.estimate.architecture import KNOWN, Linear, choose, linears

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SIZES = {
    "distilbert": {"dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": None},
    "opt": {
        "hidden_size": 64,
        "ffn_dim": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 64,
    },
    "gpt_neox": {key: value for key, value in LLAMA.items() if key != "model_type"},
}
USUAL = {**LLAMA, "num_key_value_heads": 2, "head_dim": 32, "pad_token_id": 0}


@pytest.mark.parametrize("kind", KNOWN)
def test_every_known_kind_has_the_layers_that_transformers_builds(kind):
    pytest.importorskip("transformers", minversion="5")  # 4 has fewer types
    from vbfmt.estimate.meta import linears_on_meta

    config = {**SIZES.get(kind, USUAL), "model_type": kind, "vocab_size": 100}
    if kind in ("bert", "roberta", "xlm-roberta", "camembert", "electra", "gpt_neox"):
        config = {k: v for k, v in config.items() if k not in ("head_dim", "num_key_value_heads")}
    ours, theirs = linears(config), linears_on_meta(config)

    def plain(layers: tuple[Linear, ...]) -> list[tuple[str, int, int, bool]]:
        # The models that transformers builds here have no head, so their names have no prefix.
        names = [layer.name[layer.name.index("layer") :] if "layer" in layer.name
                 else layer.name[layer.name.index("h.") :] for layer in layers]  # fmt: skip
        return sorted(
            (name, layer.in_features, layer.out_features, layer.fan_in_fan_out)
            for name, layer in zip(names, layers, strict=True)
        )

    assert plain(ours) == plain(theirs)


def test_grouped_heads_are_narrower():
    layers = linears({**LLAMA, "num_key_value_heads": 2})
    assert [(layer.leaf, layer.out_features) for layer in layers[:3]] == [
        ("q_proj", 64),
        ("k_proj", 32),
        ("v_proj", 32),
    ]


def test_choose():
    layers = linears(LLAMA)
    assert choose(layers, "all") == layers
    assert {layer.leaf for layer in choose(layers, "qv")} == {"q_proj", "v_proj"}
    assert {layer.leaf for layer in choose(layers, "up_proj, o_proj")} == {"up_proj", "o_proj"}


@pytest.mark.parametrize("targets", ["nothing", "q_proj,nothing", ""])
def test_the_error_for_unknown_targets_lists_the_known_ones(targets):
    with pytest.raises(SourceError, match="expected all, or some of q_proj, k_proj, v_proj"):
        choose(linears(LLAMA), targets)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", None),
        ("hidden_size", 0),
        ("hidden_size", "64"),
        ("hidden_size", 64.0),
        ("hidden_size", True),
        ("hidden_size", 10**30),
        ("num_hidden_layers", 10**9),
        ("num_key_value_heads", -1),
        ("num_attention_heads", 0),
    ],
)
def test_an_impossible_dimension_is_named(key, value):
    with pytest.raises(SourceError, match=key):
        linears({**LLAMA, key: value})


def test_a_required_key_that_is_missing_is_named():
    """The width of Gemma's heads is not hidden size / heads, so without head_dim it would be a
    guess."""
    with pytest.raises(SourceError, match="head_dim: found nothing"):
        linears({**LLAMA, "model_type": "gemma", "num_key_value_heads": 4})


@pytest.mark.parametrize("kind", [None, "mamba", 5, ["llama"]])
def test_the_error_for_an_unknown_model_type_lists_the_known_ones(kind):
    with pytest.raises(SourceError, match="expected one of bert, roberta"):
        linears({**LLAMA, "model_type": kind})
