"""Reading a base: equal tensors, needed files, the config, and folders that are not whole."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.converters.merge.folders import adapter_of, save_base, tensor_of
from tests.converters.merge.test_refusals import refused
from tests.tensor_files import write_tensors
from vbfmt import errors
from vbfmt.converters import merge
from vbfmt.converters._files import safetensors
from vbfmt.converters.merge import base as bases


def test_equal_tensors_outside_of_layers_are_found(tmp_path):
    one, other = tensor_of(np.ones((4, 3))), tensor_of(np.zeros((4, 3)))
    tensors = {"embed": one, "head": one, "other": other, "layers.0.q": one}
    model = bases.read(save_base(tmp_path / "base", tensors))
    assert list(model.equal_to("embed")) == ["embed", "head"]
    assert list(model.equal_to("layers.0.q")) == ["embed", "head"]
    assert list(model.equal_to("other")) == ["other"]


def test_the_files_that_a_merge_needs():
    names = ["config.json", "model.safetensors", "README.md", ".gitattributes"]
    assert bases.needed(names) == ["model.safetensors", "config.json", "README.md"]
    assert bases.needed(["config.json", "tf_model.h5"]) == []


@pytest.mark.parametrize("content", ["[]", "1", '"text"', "null"])
def test_json_that_is_not_an_object_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(errors.SourceError, match=f"not a JSON object in {tmp_path}/config.json"):
        bases.json_object(str(tmp_path / "config.json"))


def change_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_a_missing_folder_and_a_folder_without_weights(tmp_path, base):
    refused(tmp_path / "nowhere", ["no base model", "nothing"])
    refused(base / "config.json", ["no base model", "a file"])
    (base / "model.safetensors").unlink()
    refused(base, ["no base model", "config.json", "pytorch_model.bin"])


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_broken_link(base, name):
    """Earlier, it was left out with exit status 0. If the config is the link, its checks were
    skipped as well."""
    (base / name).unlink(missing_ok=True)
    (base / name).symlink_to("gone")
    refused(base, ["a broken link", name, "a link to gone"])


def test_a_config_that_is_a_folder(base):
    (base / "config.json").unlink()
    (base / "config.json").mkdir()
    refused(base, ["not a regular file", "config.json"])


def test_a_base_without_a_config_gives_a_warning(base):
    (base / "config.json").unlink()
    assert any("no config.json" in notice for notice in merge.plan(adapter_of(), base).notices)


def test_a_shard_truncated(sharded):
    path = sharded / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(sharded, ["truncated", path.name])


def test_a_shard_missing(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    refused(sharded, ["a shard is missing", "model-00002-of-00002.safetensors"])


def test_a_tensor_missing(sharded):
    change_index(sharded, lambda m: m.update({"gone": "model-00002-of-00002.safetensors"}))
    refused(sharded, ["a tensor is missing", "gone", "model-00002-of-00002.safetensors"])


def test_a_tensor_that_no_index_names(sharded):
    change_index(sharded, lambda places: places.pop("model.norm.weight"))
    refused(sharded, ["a tensor is not in the index", "model.norm.weight"])


def test_a_tensor_in_two_shards(sharded):
    first = sharded / "model-00001-of-00002.safetensors"
    second = sharded / "model-00002-of-00002.safetensors"
    tensors = dict(safetensors.read(second).tensors)
    name = next(iter(safetensors.read(first).tensors))
    tensors = {n: tensor_of(t.numpy().copy()) for n, t in tensors.items()}
    second.unlink()
    write_tensors(second, tensors | {name: tensor_of(np.ones(3))})
    refused(sharded, ["one tensor is in two shards", name])


def test_a_tensor_named_twice_in_the_index(sharded):
    path = sharded / "model.safetensors.index.json"
    text = path.read_text()
    entry = '"model.norm.weight": "model-00001-of-00002.safetensors", '
    path.write_text(text.replace('"weight_map": {', '"weight_map": {' + entry))
    refused(sharded, ["'model.norm.weight' twice", path.name])


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a\\b.safetensors", 7])
def test_an_index_with_a_path_outside_the_folder(sharded, name):
    change_index(sharded, lambda places: places.update({"model.norm.weight": name}))
    refused(sharded, ["a shard outside the folder", "model.norm.weight"])
