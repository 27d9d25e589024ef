"""The commands as functions: `vbfmt.pack`, `unpack`, `expand` and `merge`."""

from __future__ import annotations

import io

import numpy as np
import pytest

import vbfmt
from tests.conftest import warned
from tests.converters.merge.folders import adapter_of, save_base, weights_of
from tests.converters.test_peft import CONFIG, logits_form, write_folder
from vbfmt.converters import lora, peft, read
from vbfmt.converters._files import safetensors
from vbfmt.errors import ConfigError, OutputExistsError, SourceError


@pytest.fixture
def checkpoint(tmp_path):
    return write_folder(tmp_path / "checkpoint", logits_form())


@pytest.fixture
def packed(tmp_path, checkpoint):
    vbfmt.pack(checkpoint, tmp_path / "x.vblora")
    return tmp_path / "x.vblora"


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pack_writes_the_same_file_as_save_and_returns_the_adapter(tmp_path, checkpoint):
    done = vbfmt.pack(checkpoint, tmp_path / "new" / "x.vblora")
    vbfmt.save(read(checkpoint), tmp_path / "y.vblora")
    data = (tmp_path / "new" / "x.vblora").read_bytes()
    assert data == (tmp_path / "y.vblora").read_bytes()
    assert (done.digest, done.size) == (vbfmt.digest(done.adapter), len(data))
    assert (done.layout, done.bank) == ("peft", None)


def test_pack_writes_into_an_open_file(packed, checkpoint):
    stream = io.BytesIO()
    done = vbfmt.pack(checkpoint, stream)
    assert stream.getvalue() == packed.read_bytes()
    assert done.size == len(stream.getvalue())


def test_pack_writes_an_external_bank(tmp_path, checkpoint, packed):
    done = vbfmt.pack(checkpoint, tmp_path / "thin.vblora", bank="external", banks=tmp_path / "b")
    assert done.bank is not None
    assert done.digest == vbfmt.digest(vbfmt.load(packed))
    assert vbfmt.load(tmp_path / "thin.vblora", banks=tmp_path / "b") == vbfmt.load(packed)


def test_pack_records_the_given_name_and_no_path_of_the_training_machine(tmp_path):
    local = write_folder(
        tmp_path / "local", logits_form(), CONFIG | {"base_model_name_or_path": "/home/me/base"}
    )
    with warned() as messages:
        done = vbfmt.pack(local, tmp_path / "x.vblora")
    assert done.adapter.base_model is None
    assert "give `base_model=NAME`" in messages[0]
    named = vbfmt.pack(local, tmp_path / "y.vblora", base_model="me/base")
    assert vbfmt.load(tmp_path / "y.vblora").base_model == named.adapter.base_model == "me/base"


def test_unpack_writes_what_peft_write_writes(tmp_path, packed):
    done = vbfmt.unpack(packed, tmp_path / "a")
    size = peft.write(vbfmt.load(packed), tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert done.size == size


@pytest.mark.parametrize("given", ["packed", "checkpoint", "adapter"])
def test_expand_takes_files_checkpoints_and_adapters(tmp_path, packed, checkpoint, given):
    source = {"packed": packed, "checkpoint": checkpoint, "adapter": vbfmt.load(packed)}[given]
    done = vbfmt.expand(source, tmp_path / "a")
    lora.write(vbfmt.load(packed), tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert (done.form, done.rank, done.modules) == ("peft", 2, 1)
    assert done.digests == (vbfmt.digest(vbfmt.load(packed)),)


def test_expand_of_several_is_the_weighted_sum(tmp_path):
    one, other = adapter_of(), adapter_of(seed=1)
    done = vbfmt.expand([one, other], tmp_path / "sum", weights=[0.5, 2.0])
    assert done.rank == 4
    tensors = safetensors.read(tmp_path / "sum" / "adapter_model.safetensors").tensors
    for module in one:
        a, b = (
            tensors[f"base_model.model.{module.name}.lora_{factor}.weight"].numpy()
            for factor in "AB"
        )
        expected = 0.5 * one.delta(module.name) + 2.0 * other.delta(module.name)
        np.testing.assert_allclose(b @ a, expected, atol=1e-6)


def test_expand_to_a_lower_rank_returns_the_loss(tmp_path, packed):
    with warned():
        done = vbfmt.expand(packed, tmp_path / "a", rank=1)
    assert (done.rank_before, done.rank) == (2, 1)
    assert 0 < done.mean_lost < 1


def test_merge_takes_checkpoints_as_well_as_packed_files(tmp_path):
    adapter = adapter_of()
    base = save_base(tmp_path / "base", weights_of())
    vbfmt.save(adapter, tmp_path / "x.vblora")
    peft.write(adapter, tmp_path / "checkpoint")
    sources = {"file": tmp_path / "x.vblora", "folder": tmp_path / "checkpoint", "own": adapter}
    results = {}
    for name, source in sources.items():
        plan = vbfmt.merge(source, tmp_path / name, base=base)
        assert plan.layout.applied == len(list(adapter))
        results[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert results["file"] == results["own"]
    merged = {
        name: safetensors.read(tmp_path / name / "model.safetensors").tensors for name in results
    }
    for name, tensor in merged["file"].items():
        np.testing.assert_allclose(
            merged["folder"][name].numpy(), tensor.numpy(), rtol=0, atol=1e-6
        )


def test_a_dry_run_of_merge_writes_nothing(tmp_path):
    base = save_base(tmp_path / "base", weights_of())
    plan = vbfmt.merge(adapter_of(), tmp_path / "merged", base=base, dry_run=True)
    assert plan.size > 0
    assert not (tmp_path / "merged").exists()


OPERATIONS = {
    "pack": (vbfmt.pack, "x.vblora"),
    "unpack": (vbfmt.unpack, "folder"),
    "expand": (vbfmt.expand, "folder"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_existing_output_is_kept_without_overwrite(tmp_path, checkpoint, name):
    function, output = OPERATIONS[name]
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / output
    function(checkpoint, target)
    with pytest.raises(OutputExistsError):
        function(checkpoint, target)
    function(checkpoint, target, overwrite=True)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_refused_source_leaves_nothing_behind(tmp_path, name):
    function, output = OPERATIONS[name]
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError):
        function(tmp_path / "empty", tmp_path / "new" / output)
    assert not (tmp_path / "new").exists()


def test_errors_about_contradictions_name_parameters_not_options(tmp_path, packed):
    with pytest.raises(ConfigError, match="`to=gguf`"):
        vbfmt.expand(packed, tmp_path / "x.gguf", to="peft")
    with pytest.raises(ConfigError, match="unknown form"):
        vbfmt.expand(packed, tmp_path / "x", to="onnx")
    with pytest.raises((ConfigError, ValueError), match="weight"):
        vbfmt.expand([packed, packed], tmp_path / "x", weights=[1.0])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("rank", [0, -1, True, "4", 2.5])
def test_an_invalid_rank_is_refused_and_nothing_is_written(tmp_path, packed, rank):
    """Earlier, rank 0 gave an empty LoRA."""
    with pytest.raises(ConfigError, match="`rank`: found .*, expected a whole number, at least 1"):
        vbfmt.expand(packed, tmp_path / "lora", rank=rank)
    assert not (tmp_path / "lora").exists()


def test_progress_is_reported_after_every_module_and_every_block(tmp_path, packed):
    calls = []
    vbfmt.expand(packed, tmp_path / "lora", progress=lambda *given: calls.append(given))
    modules = len(vbfmt.load(packed))
    assert calls == [(1, modules)] * modules
    base = save_base(tmp_path / "base", weights_of())
    adapter, sizes = adapter_of(), []
    plan = vbfmt.merge(
        adapter, tmp_path / "merged", base=base, progress=lambda *given: sizes.append(given)
    )
    assert {total for _, total in sizes} == {plan.size}
    assert sum(done for done, _ in sizes) == plan.size


@pytest.mark.parametrize("option", [{"topk": 3}, {"layout": "nlu"}])
def test_options_for_checkpoints_are_refused_for_packed_files(tmp_path, option):
    vbfmt.save(adapter_of(), tmp_path / "x.vblora")
    for given in (tmp_path / "x.vblora", adapter_of()):
        with pytest.raises(ConfigError, match=f"for checkpoints only: `{next(iter(option))}`"):
            vbfmt.expand(given, tmp_path / "lora", **option)
    assert not (tmp_path / "lora").exists()
