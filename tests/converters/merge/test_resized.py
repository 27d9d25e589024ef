"""A vocabulary that was resized for training."""

from __future__ import annotations

import warnings

import pytest

import vbfmt
from vbfmt import errors

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

OLD, NEW = 64, 70


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the original base, the resized base, an adapter with both embeddings, and its
    logits."""
    folder = tmp_path_factory.mktemp("resized")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=OLD,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    model.resize_token_embeddings(NEW)
    model.save_pretrained(folder / "resized")
    sizes = peft.VBLoRAConfig(
        r=4,
        num_vectors=16,
        vector_length=8,
        topk=2,
        target_modules=["q_proj", "v_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(model, sizes).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder / "trained")
    vbfmt.pack(folder / "trained", folder / "a.vblora")
    ids = torch.arange(NEW - 8, NEW)[None]
    return folder, ids, model(ids).logits


def test_an_adapter_is_merged_into_a_base_that_is_resized_likewise(trained):
    folder, ids, expected = trained
    vbfmt.merge(folder / "a.vblora", folder / "merged", base=folder / "resized")
    merged = transformers.LlamaForCausalLM.from_pretrained(folder / "merged").eval()
    assert merged.config.vocab_size == NEW
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-5, atol=1e-5)


def test_the_original_base_is_refused_with_advice_to_resize(trained):
    folder, _, _ = trained
    with pytest.raises(errors.SourceError, match=rf"model\.resize_token_embeddings\({NEW}\)"):
        vbfmt.merge(folder / "a.vblora", folder / "refused", base=folder / "base")
    assert not (folder / "refused").exists()
