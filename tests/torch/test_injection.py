"""Injecting adapters into a model, switching and removing them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.torch.models import batch, config, gpt2, llama, net
from vbfmt.errors import ModelError
from vbfmt.torch import (
    VBLoRAConfig,
    VBLoRALinear,
    VectorBank,
    adapters_of,
    disabled,
    eject,
    inject,
    set_adapter,
)


def names(model):
    return list(adapters_of(model).layers("default"))


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"target_modules": ["out"]}, ["out"]),
        ({"target_modules": ["encoder.1"]}, ["encoder.1"]),
        ({"target_modules": r"encoder\.\d"}, ["encoder.0", "encoder.1"]),
        ({"target_modules": "all-linear", "exclude_modules": ["classifier"]},
         ["encoder.0", "encoder.1", "out"]),
        ({"target_modules": "all-linear", "modules_to_save": ["classifier"]},
         ["encoder.0", "encoder.1", "out"]),
        ({"target_modules": "all-linear", "task_type": "SEQ_CLS"},
         ["encoder.0", "encoder.1", "out"]),
        ({"target_modules": ["encoder.0", "out"], "exclude_modules": "o.."}, ["encoder.0"]),
    ],
)  # fmt: skip
def test_targets(settings, expected):
    model = net()
    inject(model, config(**settings))
    assert names(model) == expected


def test_all_linear_means_all_layers_except_the_output_embeddings():
    model = gpt2()
    inject(model, config(target_modules="all-linear"))
    assert len(names(model)) == 8
    assert not isinstance(model.lm_head, VBLoRALinear)
    model = llama()
    inject(model, config(target_modules="all-linear"))
    assert len(names(model)) == 14


def test_ranks_by_pattern():
    model = net()
    pattern = {"encoder.0": 1, r".*ou.": 5}
    inject(model, config(r=2, rank_pattern=pattern))
    ranks = {n: x.updates["default"].rank for n, x in adapters_of(model).all_layers().items()}
    assert ranks == {"encoder.0": 1, "encoder.1": 2, "out": 5}
    x, _ = batch()
    model(x).sum().backward()


def test_ejecting_restores_the_model():
    model = net()
    model.encoder[0].weight.requires_grad_(False)
    model.eval()
    x, _ = batch()
    output, tensors, text = model(x), state(model), repr(model)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    modules = dict(model.named_modules())
    inject(model, config(bias="all", modules_to_save=["classifier"]))
    assert not any(layer.training for layer in model.modules())
    train_everything(model)
    assert not torch.equal(model(x), output)
    eject(model)
    assert repr(model) == text
    assert dict(model.named_modules()) == modules
    assert [n for n, p in model.named_parameters() if p.requires_grad] == trained
    after = state(model)
    assert after.keys() == tensors.keys()
    assert all(torch.equal(after[name], tensors[name]) for name in tensors)
    assert torch.equal(model(x), output)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def train_everything(model):
    x, y = batch()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=10.0)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def test_with_adapters_disabled_the_model_is_the_base():
    model = net()
    x, _ = batch()
    output = model(x)
    inject(model, config(bias="all", modules_to_save=["classifier"]))
    train_everything(model)
    adapted = model(x)
    trained = [p.requires_grad for p in model.parameters()]
    with disabled(model):
        assert torch.equal(model(x), output)
    assert torch.equal(model(x), adapted)
    assert [p.requires_grad for p in model.parameters()] == trained


def test_changes_while_adapters_are_disabled_remain():
    model = net()
    for name in ("one", "two", "three"):
        inject(model, config(modules_to_save=["classifier"]), adapter_name=name)
    adapters = adapters_of(model)
    for change, expected in (
        (lambda: None, "three"),
        (lambda: set_adapter(model, "two"), "two"),
        (lambda: set_adapter(model, None), None),
        (lambda: inject(model, config(), adapter_name="four"), "four"),
        (lambda: eject(model, "four"), None),
    ):
        with disabled(model), disabled(model):
            change()
        assert adapters.active == expected
    set_adapter(model, "one")
    with pytest.raises(ValueError, match="its own"), disabled(model):
        eject(model)
        raise ValueError("its own")
    assert not hasattr(model, "vblora")


@pytest.mark.parametrize("replaced", [nn.Linear(8, 5), nn.Tanh()])
def test_a_replaced_head_is_not_switched(replaced):
    model = net()
    inject(model, config(modules_to_save=["out", "classifier"], target_modules=["0"]))
    model.classifier = replaced
    before = dict(model.named_parameters())
    for wrong in (lambda: set_adapter(model, None), lambda: eject(model)):
        with pytest.raises(ModelError, match=r"replaced after inject.*: classifier\.weight"):
            wrong()
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is before[name] for name in after)
    assert adapters_of(model).active == "default"


def test_several_adapters_are_independent():
    model = net()
    x, _ = batch()
    base = model(x)
    outputs = {}
    for name, settings in {
        "one": {"modules_to_save": ["classifier"]},
        "two": {"topk": 3, "target_modules": ["out"], "bias": "all"},
        "three": {"r": 1, "modules_to_save": ["classifier"]},
    }.items():
        inject(model, config(**settings), adapter_name=name)
        train_everything(model)
        outputs[name] = model(x)
    for name, output in outputs.items():
        set_adapter(model, name)
        assert torch.equal(model(x), output)
        own = adapters_of(model).parameters_of(name)
        trained = {id(p) for p in model.parameters() if p.requires_grad}
        assert trained == {id(p) for group in own.values() for p in group}
    set_adapter(model, None)
    assert torch.equal(model(x), base)
    assert not any(p.requires_grad for p in model.parameters())
    set_adapter(model, "three")
    eject(model, "two")
    assert torch.equal(model(x), outputs["three"])
    eject(model, "three")
    assert torch.equal(model(x), base)
    set_adapter(model, "one")
    assert torch.equal(model(x), outputs["one"])


def test_a_shared_frozen_bank_does_not_change():
    model = net()
    bank = VectorBank(16, 8).freeze()
    before = bank.weight.clone()
    for name in ("one", "two"):
        inject(model, config(), adapter_name=name, bank=bank)
        train_everything(model)
    set_adapter(model, "one")
    assert torch.equal(bank.weight, before)
    assert not bank.weight.requires_grad


def test_the_defaults_are_the_papers():
    made = VBLoRAConfig()
    assert (made.r, made.topk, made.vector_length, made.init_vector_bank_bound) == (4, 2, 256, 0.02)


@pytest.mark.parametrize(
    "settings",
    [
        {"layers_to_transform": [1]},
        {"layers_to_transform": 0, "layers_pattern": "layers"},
        {"layers_to_transform": [0, 1], "layers_pattern": ["layers"]},
        {"layers_to_transform": [1], "layers_pattern": None},
    ],
)
def test_layers_are_selected_by_number_as_in_peft(settings):
    from tests.torch.models import llama, peft_model

    try:
        theirs = peft_model(llama(), ["q_proj", "up_proj"], **settings)
    except ValueError as error:
        if settings["layers_to_transform"] != 0:
            raise
        pytest.skip(f"this version of PEFT treats layer 0 as not given: {error}")
    expected = list(theirs.targeted_module_names)
    model = llama()
    inject(model, config(target_modules=["q_proj", "up_proj"], **settings))
    assert list(adapters_of(model).all_layers()) == expected


def test_none_means_the_default_as_in_peft():
    names = ("target_modules", "exclude_modules", "modules_to_save", "rank_pattern",
             "layers_to_transform", "layers_pattern")  # fmt: skip
    assert VBLoRAConfig(**dict.fromkeys(names)) == VBLoRAConfig()


def test_an_unknown_name_of_vbfmt_torch_is_an_attribute_error():
    import vbfmt.torch

    with pytest.raises(AttributeError, match=r"module 'vbfmt\.torch' has no attribute 'injct'"):
        vbfmt.torch.injct  # noqa: B018


def test_save_pretrained_of_another_library_saves_the_adapter(tmp_path):
    class Saving(type(net())):
        def save_pretrained(self, folder):
            raise AssertionError("the base would be saved")

    torch.manual_seed(0)
    model = Saving()
    inject(model, config())
    model.save_pretrained(tmp_path / "c")
    assert (tmp_path / "c" / "adapter_config.json").is_file()
    eject(model)
    with pytest.raises(AssertionError, match="the base would be saved"):
        model.save_pretrained(tmp_path / "d")


def test_a_compiled_layer_of_an_older_pytorch_is_refused(monkeypatch):
    from torch._dynamo.eval_frame import OptimizedModule

    model = net()
    model.encoder[0] = torch.compile(model.encoder[0], backend="eager")
    monkeypatch.delattr(OptimizedModule, "_initialize")
    with pytest.raises(ModelError, match="compile it after inject, or compile the whole model"):
        inject(model, config())
