"""An adapter is refused unless each of its modules is applied to a layer of the same size."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from tests.converters.gguf.random_adapter import random_adapter  # noqa: E402
from tests.converters.vllm.fakes import Manager, layer  # noqa: E402
from vbfmt.converters.vllm import fit  # noqa: E402
from vbfmt.errors import ModelError  # noqa: E402

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture(autouse=True)
def _vllm(vllm):
    return vllm


def loaded(**sizes):
    """Return a LoRA whose modules have these (in, out) features."""
    return SimpleNamespace(
        loras={
            name: SimpleNamespace(lora_a=torch.zeros(4, a), lora_b=torch.zeros(b, 4))
            for name, (a, b) in sizes.items()
        }
    )


def test_parts_of_fused_layers_and_plain_layers_fit():
    fit.require(loaded(**{Q: (32, 32), DOWN: (48, 32)}), Manager.of_llama(), "x")


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.self_attn.q_proj",
        "transformer.layers.0.self_attn.q_proj",
        "model.layers.2.self_attn.q_proj",
        "model.layers.0.self_attn.qkv_proj",
        "model.layers.0.self_attn.router",
    ],
)
def test_a_module_that_is_not_in_the_model_is_named(name):
    with pytest.raises(
        ModelError, match=f"does not have these modules.*in x: found {name}, expected such as"
    ):
        fit.require(loaded(**{Q: (32, 32), name: (32, 32)}), Manager.of_llama(), "x")


@pytest.mark.parametrize("size", [(16, 32), (64, 32), (32, 16), (32, 64), (31, 32), (16, 16)])
def test_a_different_size_is_refused(size):
    """vLLM would copy smaller factors into the corner of its buffers."""
    with pytest.raises(ModelError, match=f"another size in x: {Q}: found .* expected 32 → 32;"):
        fit.require(loaded(**{Q: size}), Manager.of_llama(), "x")


def test_a_layer_on_another_pipeline_rank_is_not_missing():
    here = Manager.of_llama(layers=1, elsewhere=("model.layers.1", "lm_head"))
    fit.require(loaded(**{Q: (32, 32), DOWN: (48, 32)}), here, "x")
    with pytest.raises(ModelError, match=r"found model.layers.10.mlp.down_proj,"):
        fit.require(loaded(**{"model.layers.10.mlp.down_proj": (48, 32)}), here, "x")


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_sizes_are_summed_over_tensor_parallel_ranks(ranks):
    """vLLM gives each rank a head of keys and values, and counts a shared one more than once."""
    key = "model.layers.0.self_attn.k_proj"
    served = Manager.of_llama(ranks=ranks)
    fit.require(loaded(**{Q: (32, 32), key: (32, 16), DOWN: (48, 32)}), served, "x")
    for out in (8, 32, 64):
        with pytest.raises(ModelError, match="expected 32 → 16;"):
            fit.require(loaded(**{key: (32, out)}), served, "x")


def test_uneven_pipeline_stages_accept_an_adapter_of_all_layers():
    whole = random_adapter(layers=8, hidden=32, feed=48, kv=16, b=8)
    elsewhere = tuple(f"model.layers.{number}" for number in range(1, 8))
    fit.require_no_larger(whole, Manager.of_llama(layers=1, elsewhere=elsewhere), "x")
    with pytest.raises(ModelError, match="a larger model"):
        fit.require_no_larger(whole, Manager.of_llama(layers=7), "x")


def test_a_pooling_model_has_names_without_the_prefix():
    manager = Manager.of_llama(is_pooling_model=True)
    fit.require(loaded(**{Q.removeprefix("model."): (32, 32)}), manager, "x")


@pytest.mark.parametrize(
    "kind",
    [
        SimpleNamespace(base_layer=SimpleNamespace(hidden_size=32)),
        SimpleNamespace(base_layer=SimpleNamespace(num_embeddings=64, embedding_dim=32)),
    ],
    ids=["experts", "an embedding"],
)
def test_a_layer_whose_size_is_not_known_is_refused(kind):
    with pytest.raises(
        ModelError, match=f"cannot be served for this kind of layer in x: {Q}; expand"
    ):
        fit.require(loaded(**{Q: (32, 32)}), Manager({Q: kind}, {}), "x")


def test_a_fused_layer_whose_parts_do_not_match_its_outputs_is_refused():
    parts = {"x.qkvz": ["x.qkv", "x.z"]}
    served = Manager({"x.qkvz": layer(32, 32, 16, 16, 32)}, parts)
    with pytest.raises(ModelError, match="cannot be served for this kind of layer in x: x.z"):
        fit.require(loaded(**{"x.z": (32, 32)}), served, "x")


def test_a_fused_layer_with_one_name_is_one_layer():
    served = Manager({"x.qkv": layer(32, 32, 16, 16)}, {})
    fit.require(loaded(**{"x.qkv": (32, 64)}), served, "x")
    with pytest.raises(ModelError, match="found 32 → 32 features, expected 32 → 64"):
        fit.require(loaded(**{"x.qkv": (32, 32)}), served, "x")


def test_the_output_layer_is_as_large_as_the_vocabulary():
    head = SimpleNamespace(hidden_size=32, base_layer=SimpleNamespace(vocab_size=64))
    fit.require(loaded(lm_head=(32, 64)), Manager({"lm_head": head}, {}), "x")
    with pytest.raises(ModelError, match="another size"):
        fit.require(loaded(lm_head=(32, 63)), Manager({"lm_head": head}, {}), "x")
