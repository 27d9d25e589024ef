"""Targets of a LoRA config that match the adapter's modules exactly."""

from __future__ import annotations

import pytest

from vbfmt.converters.names import targets


def names(*leaves, layers=(0, 1), stack="model.layers"):
    return [f"{stack}.{n}.{leaf}" for n in layers for leaf in leaves]


def test_targets_are_full_names_never_last_components():
    modules = ["visual.merger.mlp.0", "visual.merger.mlp.2", "head"]
    assert targets.exact(modules) == targets.Targets(tuple(sorted(modules)))


def test_dense_layers_of_a_mixture_of_experts_are_targeted_as_parameters():
    dense = names("mlp.gate_proj", layers=[0])
    found = targets.exact([*names("self_attn.q_proj"), *dense])
    assert found.modules == tuple(names("self_attn.q_proj"))
    assert found.parameters == ("model.layers.0.mlp.gate_proj.weight",)


def test_shared_experts_are_targeted_as_parameters_and_routed_ones_as_modules():
    shared, routed = names("mlp.shared_experts.up_proj"), names("mlp.experts.3.up_proj")
    found = targets.exact([*shared, *routed])
    assert found.modules == tuple(sorted(routed))
    assert found.parameters == tuple(f"{name}.weight" for name in shared)
    assert targets.routed([*shared, *routed]) == sorted(routed)


@pytest.mark.parametrize(
    "modules",
    [
        names("self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj"),
        names("mlp.down_proj"),
        # More layers in another tower do not mean that layers are missing in this one.
        [*names("mlp.up_proj"), *names("q_proj", layers=range(5), stack="vision.layers")],
    ],
)
def test_a_dense_model_needs_no_parameters(modules):
    assert targets.exact(modules).parameters == ()


def test_the_base_overrides_what_names_suggest():
    modules = names("mlp.gate_proj")
    assert targets.exact(modules, experts=True).modules == ()
    assert targets.exact(names("mlp.experts.0.w1", "w2"), experts=False).parameters == ()


def test_targets_that_peft_would_convert_are_reported():
    assert "transformers 5 fuses" in targets.loading_risk(names("mlp.experts.0.up_proj"))
    assert "mixture-of-experts" in targets.loading_risk(names("mlp.up_proj"))
    assert targets.loading_risk(names("self_attn.q_proj", "mlp.up_proj")) is None
    assert (
        targets.loading_risk([*names("self_attn.q_proj"), *names("mlp.up_proj", layers=[0])])
        is None
    )


def test_layers_that_peft_loses_are_reported():
    assert "laguna" in targets.loading_risk(names("mlp.shared_experts.up_proj"))
