"""Merging into whole folders: which tensors change, and which files are copied."""

from __future__ import annotations

import json
import os
import tracemalloc

import numpy as np
import pytest

import vbfmt
from tests.converters.merge.folders import (
    SHAPES,
    adapter_of,
    others_beside,
    save_base,
    tensor_of,
    tensors_in,
    weights_of,
)
from tests.converters.merge.test_arithmetic import assert_right, exact
from vbfmt import Tensor, errors
from vbfmt._files import storage
from vbfmt.converters import merge
from vbfmt.converters._files import safetensors

SIDE_FILES = {
    "generation_config.json": b'{"do_sample": true}',
    "tokenizer.json": b"{}\n",
    "chat_template.jinja": b"{{ messages }}",
    "modeling_own.py": b"print('code')",
    "1_Pooling/config.json": b"{}",
    "2_Dense/model.safetensors": b"a layer of its own",
    "training_args.bin": b"not weights",
}
OLD_WEIGHTS = {
    "pytorch_model.bin": b"old",
    "tf_model.h5": b"old",
    "model.q4.gguf": b"old",
    "onnx/model.onnx": b"old",
    "checkpoint-500/model.safetensors": b"old",
}


def merged_into(base, out, adapters=None, **options):
    merge.write(merge.plan(adapters or adapter_of(), base, **options), out)
    return tensors_in(out)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_every_weight_is_correct_and_everything_else_unchanged(tmp_path, shards, dtype):
    adapter, tensors = adapter_of(), weights_of(dtype=dtype)
    base = save_base(tmp_path / "base", tensors, shards=shards, side_files=SIDE_FILES)
    found = merged_into(base, tmp_path / "out", adapter)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        if (owner := name.removesuffix(".weight")) in adapter:
            assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
            assert_right(found[name].numpy(), *exact(tensor, *adapter.factors(owner), dtype), dtype)
            assert found[name] != tensor
        else:
            assert found[name] == tensor


def test_other_files_are_copied_and_old_weights_are_not(tmp_path):
    base = save_base(tmp_path / "base", weights_of(), shards=2, side_files=SIDE_FILES | OLD_WEIGHTS)
    plan = merge.plan(adapter_of(), base)
    merge.write(plan, tmp_path / "out")
    files = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    before = {p.relative_to(base).as_posix() for p in base.rglob("*.*")}
    assert files == before - set(OLD_WEIGHTS) | {"vbfmt_merge.json"}
    assert set(plan.base.left_out) == set(OLD_WEIGHTS)
    for name in (*SIDE_FILES, "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    assert others_beside(tmp_path / "out") == ["base"]


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX's")
def test_scripts_stay_executable_and_all_folders_are_flushed(tmp_path, monkeypatch):
    base = save_base(tmp_path / "base", weights_of())
    (base / "a" / "b").mkdir(parents=True)
    (base / "a" / "b" / "run.sh").touch(mode=0o755)
    flushed, real = [], storage.sync_folder
    monkeypatch.setattr(storage, "sync_folder", lambda path: (flushed.append(path), real(path)))
    merged_into(base, tmp_path / "out")
    assert os.access(tmp_path / "out" / "a" / "b" / "run.sh", os.X_OK)
    assert (tmp_path / "out" / "config.json").stat().st_mode & 0o111 == 0
    assert any(path.endswith(os.path.join(".partial", "a")) for path in flushed)


def test_shards_and_index_are_consistent(tmp_path):
    base = save_base(tmp_path / "base", weights_of(), shards=3)
    merged_into(base, tmp_path / "out")
    name = "model.safetensors.index.json"
    before, after = (json.loads((f / name).read_text()) for f in (base, tmp_path / "out"))
    assert before == after
    for tensor, file in after["weight_map"].items():
        assert tensor in safetensors.read(tmp_path / "out" / file).tensors


def test_total_size_is_that_of_the_new_dtype(tmp_path):
    base = save_base(tmp_path / "base", weights_of(), shards=2)
    merged_into(base, tmp_path / "out", dtype="bfloat16")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    total = sum(tensor.data.size for tensor in tensors_in(tmp_path / "out").values())
    assert index["metadata"]["total_size"] == total
    assert total == sum(tensor.data.size for tensor in weights_of().values()) // 2


def test_metadata_is_kept_and_records_the_merge(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    tensors = weights_of()
    specs = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    safetensors.write(
        base / "model.safetensors",
        specs,
        (tensor.data.data for tensor in tensors.values()),
        metadata={"format": "pt", "author": "somebody"},
    )
    adapter = adapter_of(base_model="a/b", base_revision="main")
    merged_into(base, tmp_path / "out", adapter)
    digest = vbfmt.digest(adapter)
    assert safetensors.read(tmp_path / "out" / "model.safetensors").metadata == {
        "format": "pt",
        "author": "somebody",
        "vbfmt.merged": json.dumps([digest]),
    }
    assert json.loads((tmp_path / "out" / "vbfmt_merge.json").read_text()) == {
        "adapters": [
            {"digest": digest, "weight": 1.0, "base_model": "a/b", "base_revision": "main"}
        ],
        "files": ["model.safetensors", "vbfmt_merge.json"],
    }


def test_the_same_merge_gives_the_same_bytes(tmp_path):
    base = save_base(tmp_path / "base", weights_of(dtype="BF16"), shards=2)
    for name in ("one", "two"):
        merged_into(base, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_dtype_does_not_change_integers_and_is_written_to_the_config(tmp_path):
    tensors = weights_of() | {"positions": Tensor.of(np.arange(7))}
    config = {"model_type": "llama", "dtype": "float32", "text_config": {"torch_dtype": "float32"}}
    base = save_base(tmp_path / "base", tensors, config=config)
    found = merged_into(base, tmp_path / "out", dtype="bfloat16")
    assert {tensor.dtype for name, tensor in found.items() if name != "positions"} == {"BF16"}
    assert found["positions"] == tensors["positions"]
    assert found["model.norm.weight"] == tensor_of(tensors["model.norm.weight"].numpy(), "BF16")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        "model_type": "llama",
        "dtype": "bfloat16",
        "text_config": {"torch_dtype": "bfloat16"},
    }


def test_adapters_merge_as_their_weighted_sum(tmp_path):
    shapes = {name: SHAPES[name] for name in list(SHAPES)[:2]}
    one, two = adapter_of(seed=1), adapter_of(shapes, seed=2, rank=3)
    base = save_base(tmp_path / "base", weights_of())
    found = merged_into(base, tmp_path / "out", [one, two], weights=[0.7, -1.5])
    for name, tensor in weights_of().items():
        owner = name.removesuffix(".weight")
        total = tensor.numpy().astype(np.float64)
        for adapter, weight in ((one, 0.7), (two, -1.5)):
            if owner in adapter:
                a, b = (factor.astype(np.float64) for factor in adapter.factors(owner))
                total = total + weight * (b @ a)
        np.testing.assert_allclose(found[name].numpy(), total, rtol=1e-6, atol=1e-6)


def test_conv1d_weights_get_the_transpose(tmp_path):
    shapes = {"h.0.c_attn": (48, 16), "h.0.c_proj": (16, 16)}
    adapter = adapter_of(shapes, fan_in_fan_out=True)
    tensors = weights_of({name: shape[::-1] for name, shape in shapes.items()})
    found = merged_into(save_base(tmp_path / "base", tensors), tmp_path / "out", adapter)
    for name in shapes:
        change = found[f"{name}.weight"].numpy() - tensors[f"{name}.weight"].numpy()
        np.testing.assert_allclose(change, adapter.delta(name), atol=1e-6)


def test_shapes_override_a_wrong_fan_in_fan_out(tmp_path):
    adapter = adapter_of({"h.0.c_attn": (48, 16)}, fan_in_fan_out=False)
    tensors = weights_of({"h.0.c_attn": (16, 48)})
    found = merged_into(save_base(tmp_path / "base", tensors), tmp_path / "out", adapter)
    change = found["h.0.c_attn.weight"].numpy() - tensors["h.0.c_attn.weight"].numpy()
    np.testing.assert_allclose(change, adapter.delta("h.0.c_attn").T, atol=1e-6)


def test_a_square_weight_is_refused_if_others_contradict_fan_in_fan_out(tmp_path):
    shapes = {"h.0.c_attn": (48, 16), "h.0.c_proj": (16, 16)}
    base = save_base(tmp_path / "base", weights_of({n: s[::-1] for n, s in shapes.items()}))
    with pytest.raises(errors.SourceError, match=r"h\.0\.c_proj\.weight: found h\.0\.c_attn"):
        merge.plan(adapter_of(shapes, fan_in_fan_out=False), base)


def test_trained_biases_replace_those_of_the_base(tmp_path):
    bias = tensor_of(np.arange(16.0))
    tensors = weights_of(dtype="BF16") | {"model.layers.0.q.bias": tensor_of(np.zeros(16), "BF16")}
    base = save_base(tmp_path / "base", tensors)
    adapter = adapter_of(tensors={"model.layers.0.q.bias": bias})
    found = merged_into(base, tmp_path / "out", adapter)
    assert found["model.layers.0.q.bias"] == tensor_of(np.arange(16.0), "BF16")


def test_a_head_that_the_base_lacks_is_added_under_the_models_own_names(tmp_path):
    head = {
        "score.weight": tensor_of(np.ones((3, 24))),
        "score.bias": tensor_of(np.ones(3)),
    }
    adapter = adapter_of(tensors=head, config='{"task_type":"SEQ_CLS"}')
    without_prefix = {name.removeprefix("model."): t for name, t in weights_of().items()}
    base = save_base(tmp_path / "base", without_prefix, shards=2)
    plan = merge.plan(adapter, base)
    merge.write(plan, tmp_path / "out")
    found = tensors_in(tmp_path / "out")
    assert set(found) == {*weights_of(), *head}
    assert found["score.weight"] == head["score.weight"]
    assert found["model.norm.weight"] == weights_of()["model.norm.weight"]
    assert plan.layout.prefix == "model."
    assert set(plan.layout.added) == set(head)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert any("3 labels" in notice for notice in plan.notices)


def test_a_pickled_base_is_written_as_safetensors(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = weights_of()
    base = save_base(tmp_path / "base", tensors)
    (base / "model.safetensors").unlink()
    names, places = list(tensors), {}
    for number, here in enumerate((names[::2], names[1::2])):
        file = f"pytorch_model-{number + 1:05}-of-00002.bin"
        torch.save({n: torch.from_numpy(tensors[n].numpy().copy()) for n in here}, base / file)
        places |= dict.fromkeys(here, file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (base / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    merged_into(base, tmp_path / "out")
    plain = save_base(tmp_path / "plain", tensors)
    assert tensors_in(tmp_path / "out") == merged_into(plain, tmp_path / "other")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "vbfmt_merge.json",
    ]


def test_the_iterator_gives_what_the_folder_holds(tmp_path):
    base = save_base(tmp_path / "base", weights_of(dtype="BF16"), shards=2)
    plan = merge.plan(adapter_of(), base, dtype="float16")
    merge.write(plan, tmp_path / "out")
    assert dict(merge.tensors(plan)) == tensors_in(tmp_path / "out")


def test_progress_adds_up_to_the_announced_size(tmp_path):
    base = save_base(tmp_path / "base", weights_of(), shards=2, side_files=SIDE_FILES)
    plan, advances = merge.plan(adapter_of(), base), []
    merge.write(plan, tmp_path / "out", progress=advances.append)
    on_disk = sum(p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert sum(advances) == plan.size == on_disk


def peak_of_a_merge(folder, rows):
    shapes = {"q": (rows, 1024)}
    base = save_base(folder / "base", {"q.weight": tensor_of(np.ones((rows, 1024)))})
    plan = merge.plan(adapter_of(shapes, b=16), base)
    tracemalloc.start()
    merge.write(plan, folder / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_a_base_four_times_as_large_takes_the_same_memory(tmp_path):
    small, large = (peak_of_a_merge(tmp_path / str(rows), rows) for rows in (4_000, 16_000))
    assert small < 40_000_000
    assert abs(large - small) < 1_000_000
