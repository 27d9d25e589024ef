"""What every reader of foreign checkpoints needs first: k and the bank."""

from __future__ import annotations

import json
import os
import warnings

import numpy as np
import pytest

from tests.converters.test_peft import logits_form, write_folder
from tests.tensor_files import write_tensors
from vbfmt import Tensor, dumps
from vbfmt.converters import open_source, read
from vbfmt.converters._files import checkpoint, safetensors
from vbfmt.converters._files.checkpoint import agreed_k, bank_of
from vbfmt.converters.operations.pack import pack
from vbfmt.converters.peft import folder as peft_folder
from vbfmt.errors import ContentError, SourceError, StorageError


def test_sources_of_k_may_agree_or_be_missing():
    assert agreed_k({"--topk": None, "config": 3, "shape": 3}) == 3


@pytest.mark.parametrize("sources", [{}, {"--topk": None, "config": None}])
def test_an_unknown_k_is_refused(sources):
    with pytest.raises(SourceError, match="`topk=K`"):
        agreed_k(sources)


def test_sources_of_k_that_disagree_are_refused():
    for sources in ({"a": 1, "b": 2}, {"b": 2, "a": 1}):
        with pytest.raises(SourceError, match="sources disagree on k"):
            agreed_k(sources)


@pytest.mark.parametrize(
    ("value", "found"),
    [(True, "true"), (1.0, "1.0"), ("1", '"1"'), ([1], "[1]"), (0, "0"), (-1, "-1")],
)
def test_k_must_be_a_positive_integer(value, found):
    """True and 1.0 equal 1 in Python. In a config they are mistakes, and are shown as written."""
    for sources in (
        {"config": value},
        {"config": value, "--topk": 1},
        {"--topk": 1, "config": value},
    ):
        with pytest.raises(SourceError) as error:
            agreed_k(sources)
        assert str(error.value) == (
            f"not a size: topk: found {found} from config, expected a whole number, at least 1"
        )


@pytest.mark.parametrize(
    ("bits", "found"),
    [(0x7FF4000000000000, "nan"), (0x7FF0000000000000, "inf"), (0x7E37E43C8800759C, "1e+300")],
)
def test_a_bank_that_is_not_finite_gives_an_error_of_the_library(bits, found):
    """NumPy would give a warning for a signalling NaN and for a number beyond float32."""
    values = np.zeros((3, 2))
    values.view("<u8")[1, 1] = bits
    with warnings.catch_warnings(), pytest.raises(ContentError) as error:
        warnings.simplefilter("error")
        bank_of(Tensor.of(values))
    assert str(error.value).startswith(
        f"values are not finite in float32: vector bank: found {found} in vector 1, expected "
    )


@pytest.mark.parametrize("array", [np.ones((2, 2), int), np.ones(4), np.ones((2, 0))])
def test_an_array_that_is_not_a_bank_is_refused(array):
    with pytest.raises(SourceError, match="not a vector bank"):
        bank_of(Tensor.of(array))


def test_a_bank_that_float32_would_round_away_is_refused():
    small = Tensor.of(np.full((2, 4), 1e-50))
    with pytest.raises(ContentError, match="too small for float32: vector bank"):
        bank_of(small)
    assert not bank_of(Tensor.of(np.zeros((2, 4)))).any()


@pytest.fixture
def sharded(tmp_path):
    """Return a function that writes a checkpoint in two shards, given what each file holds."""
    write_folder(tmp_path / "whole", logits_form())
    tensors = safetensors.read(tmp_path / "whole" / "adapter_model.safetensors").tensors
    (tmp_path / "shards").mkdir()
    config = (tmp_path / "whole" / "adapter_config.json").read_bytes()
    (tmp_path / "shards" / "adapter_config.json").write_bytes(config)
    names = [f"model-{number}.safetensors" for number in (1, 2)]
    keys = sorted(tensors)
    halves = [keys[::2], keys[1::2]]
    weight_map = {key: name for name, half in zip(names, halves, strict=True) for key in half}

    def write(*, extra=(), missing=()):
        for name, half in zip(names, halves, strict=True):
            here = [key for key in half if key not in missing]
            content = {key: tensors[key] for key in here}
            if name == names[0]:
                content |= {key: Tensor.of(np.ones(3, "<f4")) for key in extra}
            (tmp_path / "shards" / name).unlink(missing_ok=True)
            write_tensors(tmp_path / "shards" / name, content)
        index = json.dumps({"weight_map": weight_map})
        (tmp_path / "shards" / "model.safetensors.index.json").write_text(index)
        return tmp_path / "shards", halves

    return write


def test_a_checkpoint_in_shards_is_read_like_one_file(sharded, tmp_path):
    folder, _ = sharded()
    assert read(folder) == read(tmp_path / "whole")
    files = [path.name for path in open_source(folder).files]
    assert files[1:3] == ["model-1.safetensors", "model-2.safetensors"]
    done = pack(folder, tmp_path / "x.vblora")
    assert done.source_size == sum(path.stat().st_size for path in folder.iterdir())


def test_a_tensor_in_two_shards_is_refused(sharded):
    _, halves = sharded()
    key = halves[1][0]
    folder, _ = sharded(extra=[key])
    with pytest.raises(SourceError, match=r"model-1.safetensors: .*expected no such tensor") as bad:
        read(folder)
    assert bad.value.part == key


def test_a_tensor_that_no_shard_has_is_refused(sharded):
    _, halves = sharded()
    folder, _ = sharded(missing=halves[1][:1])
    with pytest.raises(SourceError, match=r"model-2.safetensors: .*found no such tensor"):
        read(folder)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("way", ["rewritten", "replaced", "removed"])
def test_a_checkpoint_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, name, way):
    folder = write_folder(tmp_path / "x", logits_form())
    real = checkpoint.bank_of
    path = folder / name
    before = path.stat()

    def change_and_read(tensor):
        bank = real(tensor)
        if way == "rewritten":
            with open(path, "r+b") as file:
                file.write(path.read_bytes())
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        elif way == "replaced":
            (folder / "new").write_bytes(path.read_bytes())
            os.replace(folder / "new", path)
        else:
            path.unlink()
        return bank

    monkeypatch.setattr(peft_folder, "bank_of", change_and_read)
    for reader in (read, peft_folder.read):
        if not path.exists():
            write_folder_again(folder)
        with pytest.raises(StorageError, match="changed while the checkpoint was read") as bad:
            reader(folder)
        assert bad.value.file == str(path)


def write_folder_again(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    write_folder(folder, logits_form())


def test_tensors_do_not_change_with_the_file(tmp_path):
    folder = write_folder(tmp_path / "x", logits_form())
    path = folder / "adapter_model.safetensors"
    head = {"base_model.model.classifier.weight": Tensor.of(np.ones((2, 8), "<f4"))}
    mapped = safetensors.read(path).tensors
    path.unlink()
    write_tensors(path, mapped | head)
    adapter = read(folder)
    before = dumps(adapter)
    with open(path, "r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(b"\xff" * 64)
    assert dumps(adapter) == before
