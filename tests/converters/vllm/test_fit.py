"""Every module of an adapter is applied, to a layer of its size, or the adapter is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from tests.converters.vllm.fakes import Layer, Manager  # noqa: E402
from vbfmt.converters.vllm import fit  # noqa: E402
from vbfmt.errors import ModelError  # noqa: E402

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture(autouse=True)
def _vllm(vllm):
    return vllm


def loaded(**sizes):
    """A LoRA whose modules have these (in, out) features."""
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
def test_a_module_that_the_model_lacks_is_named(name):
    with pytest.raises(ModelError, match=f"no such modules.*in x: found {name}, expected such as"):
        fit.require(loaded(**{Q: (32, 32), name: (32, 32)}), Manager.of_llama(), "x")


@pytest.mark.parametrize("size", [(16, 32), (64, 32), (32, 16), (32, 64), (31, 32), (16, 16)])
def test_another_size_is_refused(size):
    """vLLM would copy smaller factors into the corner of its buffers."""
    with pytest.raises(ModelError, match=f"another size in x: {Q}: found .* expected 32 → 32;"):
        fit.require(loaded(**{Q: size}), Manager.of_llama(), "x")


def test_a_layer_on_another_rank_of_the_pipeline_is_not_missed():
    here = Manager.of_llama(layers=1, elsewhere=("model.layers.1", "lm_head"))
    fit.require(loaded(**{Q: (32, 32), DOWN: (48, 32)}), here, "x")
    with pytest.raises(ModelError, match=r"found model.layers.10.mlp.down_proj,"):
        fit.require(loaded(**{"model.layers.10.mlp.down_proj": (48, 32)}), here, "x")


@pytest.mark.parametrize("ranks", [2, 4])
def test_tensor_parallel_ranks_hold_parts_of_the_features(vllm, ranks):
    vllm.modules["distributed"].get_tensor_model_parallel_world_size = lambda: ranks
    part = Manager({Q: Layer.of(32, 32 // ranks), DOWN: Layer.of(48 // ranks, 32)}, {})
    fit.require(loaded(**{Q: (32, 32), DOWN: (48, 32)}), part, "x")
    for size in ((32, 64), (64, 32), (32, 24)):
        if size == (32, 24) and ranks == 4:
            continue  # 24 of 8 on three of four ranks
        with pytest.raises(ModelError, match=f"on each of {ranks} ranks"):
            fit.require(loaded(**{Q: (size[0], size[1] * ranks)}), part, "x")


def test_a_pooling_model_goes_without_its_prefix():
    manager = Manager.of_llama(is_pooling_model=True)
    fit.require(loaded(**{Q.removeprefix("model."): (32, 32)}), manager, "x")


@pytest.mark.parametrize(
    "layer",
    [
        SimpleNamespace(w13_lora_a_stacked=()),
        Layer(torch.zeros(2, 64, 8), torch.zeros(2, 1, 32, 8)),
        Layer.of(32, 32, 16),
    ],
    ids=["experts", "an embedding", "slices that go by no name"],
)
def test_a_layer_whose_size_cannot_be_checked_is_refused(layer):
    with pytest.raises(ModelError, match=f"not served in this kind of layer in x: {Q}; expand"):
        fit.require(loaded(**{Q: (32, 32)}), Manager({Q: layer}, {}), "x")


def test_the_output_layer_has_one_buffer_of_its_own():
    head = Layer(torch.zeros(2, 1, 8, 32), torch.zeros(2, 1, 64, 8))
    fit.require(loaded(lm_head=(32, 64)), Manager({"lm_head": head}, {}), "x")
    with pytest.raises(ModelError, match="another size"):
        fit.require(loaded(lm_head=(32, 63)), Manager({"lm_head": head}, {}), "x")
