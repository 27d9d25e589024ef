"""Models with images as well as text. Row i of the images need not belong to sample i."""

from __future__ import annotations

import pytest
import torch

from tests.torch.pool.adapters import adapter, merged
from vbfmt.errors import ModelError
from vbfmt.torch import AdapterPool
from vbfmt.torch.pool.names import media_layers

pytest.importorskip("transformers", minversion="4.52")  # older versions have other names

IMAGE = 49


def llava():
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision = CLIPVisionConfig(**sizes, num_attention_heads=2, image_size=16, patch_size=8)
    text = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, vocab_size=50)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1
    )
    return LlavaForConditionalGeneration(config)


def pool_of(*parts):
    pool = AdapterPool(llava().eval())
    names = [name for name, _ in pool.model.named_modules() if name.endswith("q_proj")]
    targets = [name for name in names if any(part in name for part in parts)]
    found = {name: adapter(llava, targets, seed) for seed, name in enumerate("ab")}
    for name, each in found.items():
        pool.put(name, each)
    return pool, {name: merged(llava, each) for name, each in found.items()}


IDS = torch.tensor([[IMAGE] * 4 + [1] + [IMAGE] * 4 + [2, 3], range(5, 16)])
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
"""Both images belong to the first sample."""


def test_samples_cannot_have_different_adapters_for_images():
    pool, alone = pool_of("vision_tower", "language_model")
    inputs = {"input_ids": IDS, "pixel_values": PIXELS}
    with pytest.raises(ModelError, match="images or sounds.*vision_tower"), pool.forward([*"ab"]):
        pool.model(**inputs)
    first = {"input_ids": IDS[:1], "pixel_values": PIXELS}
    with torch.no_grad():
        for name in "ab":
            with pool.forward([name]):
                found = pool.model(**first).logits
            wanted = alone[name](**first).logits
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_adapters_of_only_the_text_model_are_mixed():
    pool, alone = pool_of("language_model")
    with torch.no_grad():
        with pool.forward([*"ab"]):
            found = pool.model(input_ids=IDS, pixel_values=PIXELS).logits
        first = alone["a"](input_ids=IDS[:1], pixel_values=PIXELS).logits
        second = alone["b"](input_ids=IDS[1:]).logits
    torch.testing.assert_close(found, torch.cat([first, second]), rtol=1e-5, atol=1e-5)


def test_names_that_mark_layers_of_images():
    class Model:
        def can_generate(self):
            return True

    text = ["model.language_model.layers.0.q", "lm_head", "model.decoder.layers.0.q"]
    media = ["model.vision_tower.q", "model.multi_modal_projector", "model.audio_tower.decoder.q"]
    assert media_layers(Model(), [*text, *media]) == {*media}
    plain = ["model.layers.0.q", "lm_head", "model.encoder.layers.0.q"]
    assert media_layers(Model(), plain) == set()
    assert media_layers(Model(), [*plain, "model.vision_model.q"]) == {"model.vision_model.q"}
    assert media_layers(torch.nn.Linear(1, 1), [*text, *media]) == set()
