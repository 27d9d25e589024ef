"""Wrong use gives one line that names the module and the fix."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from torch import nn

from tests.data.train_minilm import load_base
from tests.torch.models import NET_TARGETS, SIZES, config, llama, net, peft_model
from tests.torch.test_injection import names
from vbfmt.errors import ConfigError, ModelError, VbfmtWarning
from vbfmt.torch import (
    VBLoRAConfig,
    VBLoRALinear,
    VectorBank,
    inject,
    load_checkpoint,
    load_packed,
    merge,
    save_checkpoint,
    set_adapter,
    to_adapter,
    warm_start,
)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"vector_length": 32}, ConfigError,
         ["encoder.0, out: found b = 32, 16 → 32", "vector_length=8 divides those of all 3"]),
        ({"vector_length": 12, "target_modules": ["encoder.1"]}, ConfigError,
         ["encoder.1: found b = 12, 32 → 32", "vector_length=8 divides", "every divisor of 32"]),
        ({"target_modules": ["q_proj"]}, ModelError, ["q_proj", "0, 1, out, classifier"]),
        ({"target_modules": ["encoder"]}, ModelError, ["encoder", "ModuleList"]),
        ({"modules_to_save": ["clasifier"]}, ModelError, ["clasifier", "classifier"]),
        ({"target_modules": "1"}, ModelError, ["regular expression", "['1']"]),
        ({"target_modules": "(out"}, ConfigError, ["(out", "regular expression"]),
        ({"rank_pattern": {"(out": 2}}, ConfigError, ["(out", "regular expression"]),
    ],
)  # fmt: skip
def test_wrong_use(settings, error, words):
    model = net()
    before = repr(model)
    with pytest.raises(error) as caught:
        inject(model, config(**settings))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert repr(model) == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target_modules": ["out", "q_proj"]},
         "target_modules: no module of the model matches q_proj; there is a module such as"),
        ({"target_modules": ["out", "a", "b", "c", "d"]}, "matches a, b, c and 1 more; "),
        ({"exclude_modules": ["clasifier"]},
         "exclude_modules: .*matches clasifier; there is a module such as classifier"),
        ({"exclude_modules": "classifier.+"}, r"matches classifier\.\+; "),
        ({"exclude_modules": ["classifier", "clasifier"]}, "matches clasifier; "),
        ({"rank_pattern": {"encoder.0": 1, "encoder.2": 1}},
         r"rank_pattern: no adapted layer matches encoder\.2; there is a module such as enc"),
        ({"rank_pattern": {"classifier": 1}}, "no adapted layer matches classifier"),
        ({"rank_pattern": {r"encoder\.\d": 1, r"layer\.\d": 1}}, "adapted layer matches layer"),
    ],
)  # fmt: skip
def test_entries_without_a_match_are_reported(settings, words):
    with pytest.warns(VbfmtWarning, match=words) as caught:
        inject(net(), config(**settings))
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_each_list_of_entries_has_its_own_warning():
    vain = {"target_modules": ["out", "x"], "exclude_modules": ["y"], "rank_pattern": {"z": 1}}
    with pytest.warns(VbfmtWarning, match=" matches ") as caught:
        inject(net(), config(**vain))
    assert [str(each.message).partition(":")[0] for each in caught] == list(vain)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear", "exclude_modules": ["classifier"]},
        {"target_modules": r"encoder\.\d|nothing"},
        {"exclude_modules": ["encoder.0"]},
        {"exclude_modules": "encoder"},
        {"target_modules": ["out", "classifier"], "modules_to_save": ["classifier"]},
        {"rank_pattern": {"encoder.0": 1, "1": 2, r"o.t": 5}},
        {"rank_pattern": {"out": 1, ".*": 2}},
    ],
)
def test_no_warning_if_every_entry_matches(settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inject(net(), config(**settings))


@pytest.mark.parametrize(("b", "length"), [(256, 192), (128, 128), (100, 96)])
def test_a_head_that_prevents_a_large_vector_length_is_named(b, length):
    """MiniLM's layers have 384 features and its classifier has two classes, so only 1 and 2 divide
    all."""
    model = load_base()
    with pytest.raises(ConfigError) as caught:
        inject(model, VBLoRAConfig(num_vectors=16, vector_length=b))
    message = str(caught.value)
    assert f"found b = {b}, 384 → 2; train classifier fully (modules_to_save=" in message
    assert f"vector_length={length} divides the features of the other 37 target modules" in message
    assert message.endswith("without that, use vector_length=2")
    inject(
        model,
        VBLoRAConfig(num_vectors=16, vector_length=length, exclude_modules=["classifier"]),
    )


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"topk": 17}, "17"),
        ({"topk": 0}, "1 to 16"),
        ({"r": 0}, "r"),
        ({"rank_pattern": {"out": 0}}, "rank_pattern"),
        ({"num_vectors": 0}, "num_vectors"),
        ({"bias": "lora_only"}, "vblora_only"),
        ({"vblora_dropout": 1.0}, "vblora_dropout"),
        ({"vblora_dropout": "0.1"}, "vblora_dropout"),
        ({"r": 4.0}, "4.0"),
        ({"topk": True}, "True"),
        ({"num_vectors": 65537}, "1 to 65536"),
        ({"init_vector_bank_bound": -0.02}, "init_vector_bank_bound"),
        ({"init_logits_std": float("nan")}, "init_logits_std"),
        ({"target_modules": 3}, "target_modules"),
        ({"layers_to_transform": [-1]}, "numbers of layers"),
        ({"layers_pattern": 3}, "layers_pattern"),
        ({"modules_to_save": "classifier"}, "a list of names"),
        ({"rank_pattern": ["out"]}, "rank_pattern"),
        ({"task_type": 1}, "task_type"),
    ],
)
def test_invalid_settings_are_refused(settings, word):
    with pytest.raises(ConfigError, match=word):
        config(**settings)


def test_invalid_names_are_refused():
    model = net()
    inject(model, config())
    with pytest.raises(ModelError, match="with that name"):
        inject(model, config())
    wrong = ("a.b", "", "keys", "../x", "training", "_modules", "_parameters", None, 1)
    for name in wrong:
        bare = net()
        for each in (model, bare):
            with pytest.raises(ConfigError, match="not a name"):
                inject(each, config(), adapter_name=name)
        assert all(parameter.requires_grad for parameter in bare.parameters())
    with pytest.raises(ModelError, match="nobody"):
        set_adapter(model, "nobody")
    with pytest.raises(ModelError, match="no adapter"):
        set_adapter(net(), "default")


def peft_s(model):
    return peft_model(model, NET_TARGETS)


@pytest.mark.parametrize("wrapped", [torch.compile, nn.DataParallel, peft_s])
def test_a_wrapped_model_has_other_names_and_is_refused(wrapped):
    """Otherwise, the checkpoint would match only models in the same wrapper."""
    with pytest.raises(ModelError, match="is wrapped"):
        inject(wrapped(net()), config(target_modules="all-linear"))


@pytest.mark.parametrize(
    ("features", "settings", "words"),
    [
        ((8, 12), {}, "a divisor of 4"),
        ((8, 8), {"topk": 5}, r"1 to 4 \(h\)"),
        ((8, 8), {"r": 0}, "at least 1"),
    ],
)
def test_an_invalid_layer_is_refused(features, settings, words):
    with pytest.raises(ConfigError, match=words):
        VBLoRALinear(nn.Linear(*features), VectorBank(4, 8), **settings)
    with pytest.raises(ModelError, match="Conv2d"):
        VBLoRALinear(nn.Conv2d(1, 1, 1), VectorBank(4, 8))


MEANT = peft.VBLoRAConfig(r=3, num_vectors=16, vector_length=8, target_modules=NET_TARGETS)


@pytest.mark.parametrize(
    ("given", "found", "advice"),
    [
        (MEANT, "config.VBLoRAConfig", "VBLoRAConfig.from_peft(config)"),
        (MEANT.to_dict(), "builtins.dict", "VBLoRAConfig.from_peft(config)"),
        ({**SIZES, "target_modules": NET_TARGETS}, "builtins.dict", "VBLoRAConfig(**config)"),
    ],
)
def test_a_config_of_another_method_is_refused_with_advice(given, found, advice):
    model = net()
    before = repr(model)
    with pytest.raises(ConfigError) as caught:
        inject(model, given)
    message = str(caught.value)
    assert f"{found}, expected vbfmt.torch.config.VBLoRAConfig; " in message
    assert message.endswith(f"give {advice}")
    assert repr(model) == before
    inject(model, eval(advice, {"VBLoRAConfig": VBLoRAConfig, "config": given}))
    assert names(model) == NET_TARGETS


def test_a_config_object_of_peft_is_read_like_its_file():
    assert VBLoRAConfig.from_peft(MEANT) == VBLoRAConfig.from_peft(MEANT.to_dict())
    for wrong in ("adapter_config.json", None, 4):
        with pytest.raises(ConfigError, match=r"not a PEFT config: config: found"):
            VBLoRAConfig.from_peft(wrong)


@pytest.mark.parametrize("given", [None, VBLoRAConfig, peft.VBLoRAConfig, 4])
def test_an_object_that_is_not_a_config_is_refused(given):
    with pytest.raises(ConfigError, match="not a config of this library.*; make one: VBLoRAConfig"):
        inject(net(), given)


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (
            torch.zeros(16, 8),
            r"bank = VectorBank\(\*tensor\.shape\), then bank\.weight\.data\.copy_",
        ),
        ("adapter.vblora", "VectorBank.from_packed"),
        (16, r"make one: VectorBank\(num_vectors, vector_length\)"),
    ],
)
def test_an_object_that_is_not_a_bank_is_refused(given, advice):
    model = net()
    before = repr(model)
    with pytest.raises(ConfigError, match=f"not a vector bank: bank: .*a VectorBank; .*{advice}"):
        inject(model, config(), bank=given)
    assert repr(model) == before
    with pytest.raises(ConfigError, match="not a vector bank: bank"):
        VBLoRALinear(nn.Linear(8, 8), given)
    with pytest.raises(ConfigError, match="not a vector bank: bank"):
        load_checkpoint(model, "checkpoint", bank=given)


def test_a_bank_with_different_sizes_is_refused():
    with pytest.raises(ConfigError, match="h = 5, b = 8"):
        inject(net(), config(), bank=VectorBank(5, 8))


def test_attention_that_never_calls_its_projection_is_refused():
    model = nn.TransformerEncoderLayer(16, 2, 32)
    with pytest.raises(ModelError, match="out_proj"):
        inject(model, config(target_modules=["out_proj"]))
    inject(model, config(target_modules="all-linear"))
    assert names(model) == ["linear1", "linear2"]


class Bare(nn.Module):
    """A model without linear layers, except added ones."""

    def get_output_embeddings(self):
        raise NotImplementedError


def test_a_model_without_linear_layers():
    with pytest.raises(ModelError, match="no linear layers to adapt"):
        inject(Bare(), config(target_modules="all-linear"))


def test_a_model_that_does_not_say_where_its_output_is():
    model = Bare()
    model.proj = nn.Linear(16, 8)
    inject(model, config(target_modules="all-linear"))
    assert names(model) == ["proj"]


@pytest.mark.parametrize("first", [False, True])
def test_a_model_and_a_part_of_it_cannot_both_have_adapters(first):
    model = net()
    pair = (model.encoder, model) if first else (model, model.encoder)
    inject(pair[0], config(target_modules=["0", "1"]))
    before = repr(model)
    part = r"encoder\.0" if first else "0"
    with pytest.raises(ModelError, match=f"another model with adapters: {part}; inject into one"):
        inject(pair[1], config(target_modules=["0"]), adapter_name="second")
    assert repr(model) == before


def test_a_base_whose_weights_are_offloaded_is_refused(tmp_path):
    """Factors of weights on the device "meta" would have no values, and outputs would be
    arbitrary."""
    from accelerate import cpu_offload

    model = net()
    inject(model, config())
    save_checkpoint(model, tmp_path / "checkpoint")
    adapter = to_adapter(model)
    away = cpu_offload(net(), execution_device="cpu")
    before = repr(away)
    for wrong in (
        lambda: inject(away, config()),
        lambda: load_checkpoint(away, tmp_path / "checkpoint"),
        lambda: load_packed(away, adapter),
        lambda: warm_start(away, adapter),
    ):
        with pytest.raises(
            ModelError, match=r"offloaded.*: encoder\.0.*; load the model into memory"
        ):
            wrong()
        assert repr(away) == before
    cpu_offload(model, execution_device="cpu")
    for wrong in (lambda: merge(model), lambda: load_checkpoint(model, tmp_path / "checkpoint")):
        with pytest.raises(ModelError, match="offloaded"):
            wrong()
    head = cpu_offload(net().classifier, execution_device="cpu")
    partly = net()
    partly.classifier = head
    with pytest.raises(ModelError, match=r"offloaded.*: classifier"):
        inject(partly, config(modules_to_save=["classifier"]))
    inject(net().to("meta"), config())  # a model without memory is allowed


class Router(nn.Linear):
    """A router as in mixtures of experts: a subclass of a linear layer with a different result."""

    def forward(self, x):
        return super().forward(x), x


class Wider(nn.Linear):
    def forward(self, x):
        return torch.cat([super().forward(x), x], -1)


@pytest.mark.parametrize("kind", [Router, Wider])
def test_layers_with_other_results_are_adapted_only_if_named(kind):
    def made():
        return nn.ModuleDict({"plain": nn.Linear(16, 8), "router": kind(16, 8)})

    model = made()
    inject(model, config(target_modules="all-linear"))
    assert names(model) == ["plain"]
    model = made()
    inject(model, config(target_modules=["router"]))
    with pytest.raises(ModelError, match=f"router: found {kind.__name__}, .*exclude_modules"):
        model["router"](torch.zeros(2, 16))


def test_layers_of_peft_within_a_plain_model_are_refused():
    model = llama()
    peft.inject_adapter_in_model(peft.LoraConfig(r=8, target_modules=["k_proj"]), model)
    before = repr(model)
    with pytest.raises(
        ModelError, match=r"has a PEFT adapter: model\.layers\.0\.self_attn\.k_proj: found"
    ):
        inject(model, config(target_modules=["q_proj"]))
    assert repr(model) == before


def test_the_model_inside_a_wrapper_must_be_given():
    model = net()
    inject(model, config())
    wrapper = nn.Module()  # as torch.compile does
    wrapper._orig_mod = model
    with pytest.raises(ModelError, match="the model is wrapped: found Module"):
        inject(wrapper, config(), adapter_name="second")


class QuantLinear(nn.Module):
    """A layer as in GPTQ, AWQ and HQQ: no `nn.Linear`, and no weight with the layer's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 32, 32
        self.register_buffer("qweight", torch.zeros(4, 32, dtype=torch.int32))


def test_layers_of_gptq_awq_and_hqq_are_refused_if_named():
    model = net()
    model.encoder[1] = QuantLinear()
    with pytest.raises(ModelError, match=r"cannot adapt: encoder\.1: found QuantLinear, expected"):
        inject(model, config())
    assert isinstance(model.encoder[1], QuantLinear)
