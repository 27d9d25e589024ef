"""What `--check` reports about each runtime before anything is written."""

from __future__ import annotations

import pytest

from spec.golden.make import wide_indices
from tests.converters.gguf.random_adapter import adapter_of, random_adapter
from vbfmt import Module, errors
from vbfmt.converters import WRITERS, runtimes


@pytest.fixture(scope="module")
def plain():
    return random_adapter(layers=2, hidden=32, feed=48, kv=16, b=8)


@pytest.mark.parametrize("runtime", runtimes.FORMS)
def test_a_plain_adapter_has_no_problems(plain, runtime):
    assert runtimes.findings(plain, runtime) == []


@pytest.mark.parametrize("runtime", ["vllm", "llama.cpp", "ollama"])
def test_extras_that_a_runtime_refuses_are_problems(runtime):
    with pytest.raises(errors.TargetError, match=f"{runtime} would not load it.*drop_extras=True"):
        runtimes.require_loadable(wide_indices(), runtime)
    assert runtimes.require_loadable(wide_indices(), runtime, drop_extras=True) == []


def test_every_form_that_a_runtime_loads_can_be_written():
    assert set(runtimes.FORMS.values()) == set(WRITERS)


def test_extras_that_a_runtime_drops_silently_are_reported():
    found = runtimes.require_loadable(wide_indices(), "tgi")
    assert "drops" in {finding.rule.effect for finding in found}
    assert any("score.weight" in str(finding) for finding in found)


def test_high_ranks_need_an_option_of_vllm():
    high = adapter_of([Module("model.layers.0.q", 32, 32, 32)], b=8)
    (finding,) = runtimes.findings(high, "vllm")
    assert "needs --max-lora-rank 32" in str(finding)


def test_tgi_drops_kinds_that_a_layer_lacks(plain):
    names = [m for m in plain if m.name != "model.layers.0.mlp.up_proj"]
    (finding,) = runtimes.findings(adapter_of(names, b=8), "tgi")
    assert str(finding).startswith("tgi drops mlp.up_proj in every layer")


@pytest.mark.parametrize(
    ("runtime", "name", "start"),
    [
        ("vllm", "model.visual.blocks.0.attn.proj", "vllm drops model.visual"),
        ("vllm", "vision_tower.encoder.layers.0.fc1", "vllm drops vision_tower"),
        ("vllm", "multi_modal_projector.linear_1", "vllm drops multi_modal_projector"),
        ("vllm", "model.language_model.layers.0.mlp.up_proj", "vllm may drop model.language_model"),
        ("sglang", "model.language_model.layers.0.mlp.up_proj", "sglang may drop"),
        ("tgi", "vision_model.encoder.layers.0.fc1", "tgi may drop vision_model"),
    ],
)
def test_parts_of_a_vision_language_model_are_reported(runtime, name, start):
    found = runtimes.require_loadable(adapter_of([Module(name, 32, 32, 4)], b=8), runtime)
    (finding,) = [each for each in found if each.rule.effect in ("drops", "may drop")][:1]
    assert str(finding).startswith(start)
    assert "merge" in str(finding)


def test_every_rule_has_a_runtime_and_a_source():
    for rule in runtimes.RULES:
        assert rule.runtime in runtimes.FORMS
        assert rule.source.split(",")[0].split()[0].endswith((".py", ".cpp"))


def test_the_error_for_an_unknown_runtime_lists_the_known_ones(plain):
    with pytest.raises(errors.ConfigError, match="expected vllm, sglang, tgi"):
        runtimes.findings(plain, "exllama")


def test_modules_outside_the_layers_do_not_count_as_missing_in_layers(plain):
    whole = adapter_of([*plain.modules, Module("lm_head", 32, 64, 4)], b=8)
    assert runtimes._gaps(whole) == runtimes._gaps(plain) == ""
