"""Loading a packed file into a model with PEFT."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from tests.converters import models  # noqa: E402
from vbfmt import errors, save  # noqa: E402
from vbfmt.converters import peft, read  # noqa: E402


@pytest.fixture(params=["llama", "gpt2", "bert"])
def kind(request):
    return request.param


@pytest.fixture
def packed(tmp_path, kind):
    model = models.trained(kind, str(tmp_path))
    save(read(models.saved(model, str(tmp_path))), tmp_path / "x.vblora")
    with torch.no_grad():
        return tmp_path / "x.vblora", models.outputs(model)


@pytest.mark.parametrize("form", ["lora", "vblora"])
def test_outputs_are_those_of_the_trained_model(tmp_path, kind, packed, form):
    path, expected = packed
    loaded = peft.load_adapter(models.base(kind, str(tmp_path)), path, form=form)
    with torch.no_grad():
        found = models.outputs(loaded)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not loaded.training


def test_a_second_adapter_can_be_loaded(tmp_path, kind, packed):
    path, expected = packed
    if kind == "bert":
        pytest.skip("PEFT holds only one adapter with trained biases")
    once = peft.load_adapter(models.base(kind, str(tmp_path)), path)
    twice = peft.load_adapter(once, path, adapter_name="again")
    assert twice is once
    assert sorted(twice.peft_config) == ["again", "default"]
    assert twice.active_adapter == "again"
    with torch.no_grad():
        found = models.outputs(twice)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_another_model_is_refused(tmp_path, kind, packed):
    path, _ = packed
    other = models.base("gpt2" if kind != "gpt2" else "llama", str(tmp_path / "other"))
    with pytest.raises(errors.TargetError, match="does not fit the adapter.*no such module"):
        peft.load_adapter(other, path)


def test_an_unknown_form_is_refused(tmp_path, packed, kind):
    with pytest.raises(errors.TargetError, match="expected lora or vblora"):
        peft.load_adapter(models.base(kind, str(tmp_path)), packed[0], form="dora")


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_a_name_that_is_taken_is_refused_before_anything_is_loaded(tmp_path, kind, packed):
    model = peft.load_adapter(models.base(kind, str(tmp_path)), packed[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(errors.TargetError, match=r"an adapter of that name.*default"):
        peft.load_adapter(model, packed[0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
@pytest.mark.parametrize("name", ["", "a.b", None, 3])
def test_a_name_that_peft_does_not_accept_is_refused(tmp_path, kind, packed, name):
    with pytest.raises(errors.TargetError, match="not a name for an adapter"):
        peft.load_adapter(models.base(kind, str(tmp_path)), packed[0], adapter_name=name)


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_swapped_arguments_are_recognized(tmp_path, kind, packed):
    with pytest.raises(errors.TargetError, match="not a model.*the model, then the file"):
        peft.load_adapter(packed[0], models.base(kind, str(tmp_path)))


def test_a_model_without_the_methods_of_transformers_is_refused(packed):
    from torch import nn

    path, _ = packed
    with pytest.raises(errors.TargetError, match="does not fit the adapter in .*no such module"):
        peft.load_adapter(nn.Sequential(nn.Linear(4, 4)), path)
