"""The sizes of methods, compared with PEFT's counts and with real packed files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.paper.parameters import random_adapter
from vbfmt import dumps, loads
from vbfmt.errors import ContentError
from vbfmt.estimate import Linear, Ranks, Shape, compare, linears, vblora
from vbfmt.estimate.shape import lengths_that_fit, suggested_length

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@st.composite
def shapes(draw: st.DrawFn) -> tuple[tuple[Linear, ...], Shape]:
    h = draw(st.integers(1, 40) | st.sampled_from([255, 256, 257, 1000]))
    shape = Shape(
        h, draw(st.integers(1, 16)), draw(st.integers(1, min(h, 5))), draw(st.integers(1, 5))
    )
    count = draw(st.integers(1, 200))
    return tuple(
        Linear(f"layers.{n}.m", shape.b * draw(st.integers(1, 5)), shape.b * 3)
        for n in range(count)
    ), shape


@given(shapes())
def test_bytes_are_those_of_a_real_file(case):
    layers, shape = case
    data = dumps(random_adapter(layers, shape))
    assert vblora(layers, shape).bytes == len(data)
    assert shape.subvectors(layers) == loads(data).N


@pytest.fixture(scope="module")
def trainable():
    """Return PEFT's count of trainable parameters for the same model."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def count(config) -> int:
        with torch.device("cpu"):
            base = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.for_model(**CONFIG, vocab_size=50, pad_token_id=0)
            )
        model = peft.get_peft_model(base, config)
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    return count


def test_counts_of_trained_numbers_are_those_of_peft(trainable):
    peft = pytest.importorskip("peft")

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    ours = compare(linears(CONFIG), Shape(20, 16, 2, 4), Ranks(lora=6, vera=8, uni=100))
    by_name = {cost.method.partition(",")[0]: cost.trained for cost in ours}
    vb = peft.VBLoRAConfig(
        r=4, topk=2, num_vectors=20, vector_length=16, target_modules=targets,
        save_only_topk_weights=True,
    )  # fmt: skip
    assert by_name["VB-LoRA"] == trainable(vb)
    assert by_name["LoRA"] == trainable(peft.LoraConfig(r=6, target_modules=targets))
    assert by_name["VeRA"] == trainable(peft.VeraConfig(r=8, target_modules=targets))
    unilora = getattr(peft, "UniLoraConfig", None)
    if unilora is not None:
        uni = unilora(r=4, theta_d_length=100, target_modules=targets)
        assert by_name["Uni-LoRA"] == trainable(uni)


def test_float32_equivalents_of_sec_3_4():
    """The count is hb + 3LMr(d/b) for k = 2 and 8-bit indices, and hb + 4LMr(d/b) for 16-bit
    indices."""
    layers = tuple(Linear(f"{n}.m", 32, 32) for n in range(6))
    assert vblora(layers, Shape(90, 8, 2, 4)).stored == 90 * 8 + 3 * 6 * 4 * 32 / 8
    assert vblora(layers, Shape(300, 8, 2, 4)).stored == 300 * 8 + 4 * 6 * 4 * 32 / 8


def test_tied_lora_ties_layers_of_one_kind():
    layers = tuple(Linear(f"{n}.m", 32, 48) for n in range(6))
    (tied,) = (c for c in compare(layers, Shape(4, 8, 2, 3)) if c.method.startswith("Tied"))
    assert tied.stored == 3 * (32 + 48) + 6 * (48 + 3)


def test_vector_lengths_that_fit_divide_all_dimensions():
    layers = (Linear("0.a", 768, 3072), Linear("0.b", 768, 2304))
    assert lengths_that_fit(layers) == [n for n in range(1, 769) if 768 % n == 0]
    assert suggested_length(layers) == 256


@given(st.lists(st.integers(1, 600), min_size=1, max_size=6))
def test_all_vector_lengths_that_fit_are_found(dimensions):
    layers = tuple(Linear(f"{n}.m", n, n) for n in dimensions)
    assert lengths_that_fit(layers) == [
        b for b in range(1, max(dimensions) + 1) if all(n % b == 0 for n in dimensions)
    ]


@pytest.mark.parametrize(
    "shape", [Shape(70000, 8), Shape(4, 8, k=5), Shape(4, 7), Shape(4, 8, r=0)]
)
def test_shapes_that_the_format_cannot_hold_are_refused(shape):
    with pytest.raises(ContentError):
        vblora((Linear("0.m", 64, 64),), shape)
