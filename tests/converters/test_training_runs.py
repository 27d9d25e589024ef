"""A training run's files are packed to the same bytes as PEFT's checkpoint, or refused clearly."""

from __future__ import annotations

import json
import shutil

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

import safetensors.torch as st  # noqa: E402

from tests.conftest import warned  # noqa: E402
from tests.converters import models  # noqa: E402
from vbfmt import digest, errors  # noqa: E402
from vbfmt.converters import read  # noqa: E402


@pytest.fixture(params=["llama", "bert"])
def model(request, tmp_path):
    return models.trained(request.param, str(tmp_path))


@pytest.fixture
def plain(model, tmp_path):
    return models.saved(model, str(tmp_path))


def beside_config(plain, tensors, tmp_path, name="model.safetensors"):
    """Return a folder with these tensors and the plain checkpoint's config."""
    folder = tmp_path / "other"
    folder.mkdir()
    shutil.copy(f"{plain}/adapter_config.json", folder)
    if name.endswith(".bin"):
        torch.save(tensors, folder / name)
    else:
        contiguous = {key: tensor.clone() for key, tensor in tensors.items()}
        st.save_file(contiguous, folder / name)
    return folder


WRAPPED = {
    "compiled before PEFT": lambda key: key.replace("model.model.", "model._orig_mod.model."),
    "compiled whole": lambda key: f"_orig_mod.{key}",
    "compiled layer by layer": lambda key: key.replace(".0.", ".0._orig_mod."),
    "checkpoint-wrapped": lambda key: key.replace(".1.", ".1._checkpoint_wrapped_module."),
    "FSDP": lambda key: f"_fsdp_wrapped_module.{key}".replace(".0.", ".0._fsdp_wrapped_module."),
    "DDP": lambda key: f"module.{key}",
    "DDP of a compiled model": lambda key: f"module._orig_mod.{key}",
    "PEFT around DDP": lambda key: key.replace("base_model.model.", "base_model.model.module."),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
def test_names_of_wrappers_are_removed(plain, tmp_path, wrap):
    tensors = st.load_file(f"{plain}/adapter_model.safetensors")
    wrapped = {wrap(key): tensor for key, tensor in tensors.items()}
    folder = beside_config(plain, wrapped, tmp_path, "adapter_model.safetensors")
    assert digest(read(folder)) == digest(read(plain))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_whole_models_state_dict_is_packed_without_the_base(model, plain, tmp_path, name):
    state = model.state_dict()
    assert sum("vector_bank" in key for key in state) > 1  # a copy for each layer
    with warned() as sentences:
        packed = read(beside_config(plain, state, tmp_path, name))
    assert digest(packed) == digest(read(plain))
    assert any("tensors of the base model were left out" in sentence for sentence in sentences)


def test_shared_tensors_may_be_saved_once_under_a_layers_name(model, plain, tmp_path):
    state = model.state_dict()
    banks = sorted(key for key in state if "vector_bank" in key and "layer" in key)
    once = {k: t for k, t in state.items() if "vector_bank" not in k or k == banks[0]}
    assert digest(read(beside_config(plain, once, tmp_path))) == digest(read(plain))


def test_layers_with_different_banks_are_refused(model, plain, tmp_path):
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state[max(key for key in state if "vector_bank" in key)] += 1
    with pytest.raises(errors.SourceError, match="two vector banks with different values"):
        read(beside_config(plain, state, tmp_path))


def test_a_whole_model_in_several_files_is_packed(model, plain, tmp_path):
    folder = beside_config(plain, model.state_dict(), tmp_path)
    tensors = st.load_file(folder / "model.safetensors")
    places = {}
    for number, part in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        name = f"model-{number}.safetensors"
        st.save_file({key: tensors[key] for key in part}, folder / name)
        places |= dict.fromkeys(part, name)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert digest(read(folder)) == digest(read(plain))
    for name in ("../x.safetensors", ["model-0.safetensors"], {}, 5, None):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(errors.SourceError, match="not a file of weights"):
            read(folder)


@pytest.mark.parametrize("part", ["vector_bank", "logits_A", "classifier"])
def test_tensors_that_zero3_emptied_are_refused_with_advice(tmp_path, part):
    plain = models.saved(models.trained("bert", str(tmp_path)), str(tmp_path))
    tensors = st.load_file(f"{plain}/adapter_model.safetensors")
    emptied = {k: torch.empty(0) if part in k else t for k, t in tensors.items()}
    folder = beside_config(plain, emptied, tmp_path, "adapter_model.safetensors")
    with pytest.raises(errors.SourceError, match=r"ZeRO-3.*zero_to_fp32\.py"):
        read(folder)


FOLDERS = {
    "Trainer": (["checkpoint-9/x", "checkpoint-10/x"], "choose one: .*checkpoint-10$"),
    "DCP": ([".metadata", "__0_0.distcp"], "format_utils dcp_to_torch"),
    "DCP of accelerate": (["pytorch_model_fsdp_0/__0_0.distcp"], "pytorch_model_fsdp_0"),
    "DeepSpeed": (["latest", "zero_to_fp32.py", "global_step9/x"], "run its zero_to_fp32.py"),
    "DeepSpeed's inner": (["mp_rank_00_model_states.pt"], "run its zero_to_fp32.py"),
}


@pytest.mark.parametrize(("files", "advice"), FOLDERS.values(), ids=FOLDERS.keys())
def test_folders_without_weights_are_refused_with_advice(tmp_path, files, advice):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(errors.SourceError, match=advice):
        read(tmp_path)


def test_a_target_list_with_wrappers_is_written_without_them(tmp_path):
    plain = models.saved(models.trained("llama", str(tmp_path)), str(tmp_path))
    path = f"{plain}/adapter_config.json"
    with open(path) as file:
        config = json.load(file)
    names = sorted(config["target_modules"])
    config["target_modules"] = [f"_orig_mod.{name}" for name in names]
    with open(path, "w") as file:
        json.dump(config, file)
    assert json.loads(read(plain).config)["target_modules"] == names
