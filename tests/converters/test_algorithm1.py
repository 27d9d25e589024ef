"""The layout of the paper's Algorithm 1, and how layouts are recognized."""

from __future__ import annotations

import numpy as np
import pytest

from tests import reference
from tests.conftest import warned
from tests.converters.test_peft import logits_form, write_folder
from tests.tensor_files import write_tensors
from vbfmt import Tensor, errors
from vbfmt.converters import READERS, open_source, read

H, B, R, K = 12, 4, 2, 2


def state(d_in=8, d_out=8, seed=0):
    """Return a state dict as in the pseudocode: ΔW of ``x @ W`` is B·A, so A is at the output."""
    rng = np.random.default_rng(seed)
    return {
        "vector_bank": rng.standard_normal((H, B)).astype(np.float32),
        "layers.0.q.logits_A": rng.standard_normal((d_out // B, R, H)).astype(np.float32),
        "layers.0.q.logits_B": rng.standard_normal((d_in // B, R, H)).astype(np.float32),
    }


def saved(folder, arrays):
    folder.mkdir(exist_ok=True)
    path = folder / "x.safetensors"
    path.unlink(missing_ok=True)
    write_tensors(path, {key: Tensor.of(array) for key, array in arrays.items()})
    return path


def pseudocode_delta(arrays):
    """Return B·A (d_in, d_out) of Algorithm 1 in float64."""
    bank = arrays["vector_bank"]
    matrices = {}
    for name in "AB":
        logits = arrays[f"layers.0.q.logits_{name}"]
        flat = reference.subvectors(logits.reshape(-1, H), bank, K)
        matrices[name] = flat.reshape(*logits.shape[:2], B)
    a = matrices["A"].swapaxes(0, 1).reshape(R, -1)
    b = matrices["B"].swapaxes(1, 2).reshape(-1, R)
    return b @ a


@pytest.mark.parametrize(("d_in", "d_out"), [(8, 8), (8, 12), (20, 4)])
def test_the_delta_is_that_of_the_pseudocode(tmp_path, d_in, d_out):
    arrays = state(d_in, d_out)
    adapter = read(saved(tmp_path, arrays), layout="algorithm1", topk=K)
    exact = pseudocode_delta(arrays).T  # nn.Linear keeps the transpose
    delta = adapter.delta("layers.0.q")
    assert delta.shape == (d_out, d_in)
    assert np.abs(delta - exact).max() <= 1e-6 * np.abs(exact).max()


def test_the_layout_of_a_plain_state_dict_must_be_given(tmp_path):
    path = saved(tmp_path, state())
    with pytest.raises(
        errors.SourceError, match="say which: `layout=nlu` or `layout=algorithm1`"
    ) as caught:
        read(path, topk=K)
    assert caught.value.file == str(path)
    one, other = (read(path, layout=name, topk=K) for name in ("nlu", "algorithm1"))
    assert one.modules == other.modules
    assert np.abs(one.delta("layers.0.q") - other.delta("layers.0.q")).max() > 0.1


def test_a_weight_in_the_file_that_contradicts_the_layout_is_named(tmp_path):
    arrays = state(d_in=8, d_out=12)
    arrays["layers.0.q.weight"] = np.zeros((8, 12), np.float32)
    with pytest.raises(errors.SourceError, match="layout nlu fits: `layout=nlu`"):
        read(saved(tmp_path, arrays), layout="algorithm1", topk=K)


def test_k_must_be_given(tmp_path):
    with pytest.raises(errors.SourceError, match="give it: `topk=K`"):
        read(saved(tmp_path, state()), layout="algorithm1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layers.0.q.logits_A": np.zeros((2, 2, H + 1), np.float32)},
            "the logits do not fit the bank",
        ),
        ({"layers.0.q.logits_A": np.zeros((2, 3, H), np.float32)}, "ranks disagree"),
        ({"layers.0.q.logits_A": np.zeros((2, R, H), np.int32)}, "the logits do not fit the bank"),
        ({"layers.1.q.logits_B": np.zeros((2, R, H), np.float32)}, "incomplete checkpoint"),
        ({"other.vector_bank": np.zeros((H, B), np.float32)}, "not exactly one vector bank"),
        ({"vector_bank": np.zeros((0, B), np.float32)}, "not a vector bank"),
    ],
)
def test_shapes_that_do_not_match_are_refused(tmp_path, change, message):
    with pytest.raises(errors.SourceError, match=message):
        read(saved(tmp_path, {**state(), **change}), layout="algorithm1", topk=K)


def test_other_tensors_in_the_file_are_reported(tmp_path):
    arrays = {**state(), "head.weight": np.zeros((2, 2), np.float32)}
    with warned() as messages:
        adapter = read(saved(tmp_path, arrays), layout="algorithm1", topk=K)
    assert dict(adapter.tensors) == {}
    assert messages == ["1 other tensors (head.weight) were left out"]


def test_a_peft_checkpoint_is_recognized_by_its_keys(tmp_path):
    folder = write_folder(tmp_path / "x", logits_form())
    assert open_source(folder).reader.name == "peft"
    assert open_source(folder, layout="peft").read() == read(folder)


def test_lora_is_not_vb_lora(tmp_path):
    path = saved(tmp_path, {"a.lora_A.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(errors.SourceError, match="found LoRA factors.*a standard LoRA already"):
        read(path)


def test_the_error_for_an_unknown_layout_lists_the_known_ones(tmp_path):
    names = ", ".join(reader.name for reader in READERS)
    with pytest.raises(errors.SourceError, match=f"expected {names}"):
        read(saved(tmp_path, state()), layout="qlora")


def test_a_bank_without_logits_is_refused(tmp_path):
    bank = {"vector_bank": np.zeros((H, B), np.float32)}
    with pytest.raises(errors.SourceError, match="no logits in .*: keys: expected keys like"):
        read(saved(tmp_path, bank), layout="algorithm1", topk=K)
