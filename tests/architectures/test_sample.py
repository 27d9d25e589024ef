"""A sample of ``make architectures``: one architecture for each way in which the names and
weights of a model differ from those of its checkpoint."""

from __future__ import annotations

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers.conversion_mapping")

from tests.architectures import check, pool

SAMPLE = {
    "LlamaForCausalLM": "causal",  # the same names everywhere
    "MixtralForCausalLM": "causal",  # fused experts, a renamed router
    "Qwen2VLForConditionalGeneration": "vision-language",  # moved modules; some are named 0 or 2
    "Dinov2ForImageClassification": "image classification",  # all names differ
    "T5ForConditionalGeneration": "sequence to sequence",
    "Wav2Vec2ForCTC": "CTC",
}


@pytest.mark.parametrize("name", SAMPLE)
def test_every_step_equals_peft(name, tmp_path):
    with check.quiet():
        result = check.check(SAMPLE[name], name, str(tmp_path))
    assert not result.without
    assert result.steps == dict.fromkeys(("pack", "merge", "expand", "load"), "equal")
    assert result.modules


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("LlamaForCausalLM", "equal"),
        ("Qwen2MoeForCausalLM", "equal"),  # shared experts have flattened inputs
        ("XLNetLMHeadModel", "refused"),  # positions are the first dimension
    ],
)
def test_a_mixed_batch_of_the_pool(name, outcome):
    with check.quiet():
        assert pool.compared("causal", name).startswith(outcome)
