"""PyTorch's own files, read without running them."""

from __future__ import annotations

import os
import pickle
import warnings

import pytest

torch = pytest.importorskip("torch")

from tests.converters.test_peft import CONFIG, logits_form, read  # noqa: E402
from vbfmt import errors  # noqa: E402
from vbfmt.converters import peft  # noqa: E402
from vbfmt.converters._files import pickle as ours  # noqa: E402


def test_a_bin_file_is_the_same_adapter(tmp_path):
    arrays = logits_form()
    state = {key: torch.from_numpy(array) for key, array in arrays.items()}
    torch.save(state, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text(str(CONFIG).replace("'", '"'))
    assert peft.read(tmp_path) == read(arrays)
    assert peft.read(tmp_path / "adapter_model.bin") == read(arrays)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "int64", "bool"])
def test_every_dtype_and_layout_comes_through(tmp_path, dtype):
    tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
    torch.save({"a": tensor.T, "s": tensor[0, 1]}, tmp_path / "x.bin")
    found = ours.read(tmp_path / "x.bin")
    assert found["a"].numpy().tolist() == tensor.T.tolist()
    assert found["a"].shape == (3, 2)
    assert found["s"].shape == ()


class Bomb:
    def __reduce__(self):
        return os.system, ("touch boom",)


@pytest.mark.parametrize("writer", [pickle.dumps, None])
def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch, writer):
    monkeypatch.chdir(tmp_path)
    if writer:
        (tmp_path / "x.bin").write_bytes(writer({"a": Bomb()}))
    else:
        torch.save({"a": Bomb()}, tmp_path / "x.bin")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(errors.SourceError, match=r"refused.*(?i:unsupported)"):
            ours.read(tmp_path / "x.bin")
    assert told == []
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("data", [b"", b"no pickle", b"\x80\x04.", b"PK\x03\x04"])
def test_what_is_no_pickle_is_one_error(tmp_path, data):
    (tmp_path / "x.bin").write_bytes(data)
    with pytest.raises(errors.SourceError, match="refused"):
        ours.read(tmp_path / "x.bin")


@pytest.mark.parametrize(
    "state",
    [
        [torch.zeros(1)],
        {"a": 1},
        {1: torch.zeros(1)},
        {"a": torch.zeros(2).to_sparse()},
        {"a": torch.zeros(2, device="meta")},
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "x.bin")
    with pytest.raises(errors.SourceError, match="not a"):
        ours.read(tmp_path / "x.bin")


@pytest.mark.parametrize("sizes", [(2**40,), (2**33,), (2**20, 2**20), (2,)])
def test_elements_that_are_not_stored_are_refused(tmp_path, sizes):
    """A file of 2 kB that names 4 TB."""
    torch.save({"a": torch.ones(1).expand(sizes)}, tmp_path / "x.bin")
    with pytest.raises(errors.SourceError, match="more elements than the file holds"):
        ours.read(tmp_path / "x.bin")


def test_many_copies_of_one_stored_tensor_are_refused(tmp_path):
    stored = torch.ones(100, 100)
    torch.save({str(n): stored.T for n in range(20)}, tmp_path / "x.bin")
    with pytest.raises(errors.SourceError, match="more elements than the file holds"):
        ours.read(tmp_path / "x.bin")


def test_a_tensor_that_is_stored_with_its_sign_turned(tmp_path):
    torch.save({"a": torch._neg_view(torch.tensor([1.0, -2.0]))}, tmp_path / "x.bin")
    assert ours.read(tmp_path / "x.bin")["a"].numpy().tolist() == [-1, 2]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(errors.SourceError, match="cannot read"):
        ours.read(tmp_path / "x.bin")
