"""Invalid PEFT checkpoints are refused with one line of reason."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tests.converters.merge.folders import adapter_of
from tests.converters.test_peft import (
    CONFIG,
    KEY,
    B,
    H,
    K,
    R,
    logits_form,
    read,
    topk_form,
    write_folder,
)
from vbfmt import Tensor, errors
from vbfmt._files import peft_layout
from vbfmt.converters import peft
from vbfmt.converters.peft.keys import parse


def change(key, value):
    def apply(arrays):
        arrays[f"{KEY}.vblora_logits_{key}"] = value

    return apply


def drop(key):
    return lambda arrays: arrays.pop(f"{KEY}.vblora_logits_{key}")


WRONG_LOGITS = {
    "no bank": (lambda a: a.pop("base_model.vblora_vector_bank"), "expected one key like"),
    "two banks": (
        lambda a: a.update({"base_model.vblora_vector_bank.other": np.ones((H, B))}),
        "more than one adapter: found (no name), other",
    ),
    "two banks of one name": (
        lambda a: a.update({"base_model.model.vblora_vector_bank": np.ones((H, B))}),
        "not exactly one VB-LoRA adapter",
    ),
    "bank of integers": (
        lambda a: a.update({"base_model.vblora_vector_bank": np.ones((H, B), int)}),
        "not a vector bank",
    ),
    "bank without vectors": (
        lambda a: a.update({"base_model.vblora_vector_bank": np.ones((0, B))}),
        "not a vector bank",
    ),
    "bank not finite": (
        lambda a: a.update({"base_model.vblora_vector_bank": np.full((H, B), np.nan)}),
        "not finite",
    ),
    "no B": (drop("B"), "factor B: found nothing, expected logits"),
    "another h": (change("A", np.ones((R, 2, H + 1), np.float32)), "do not fit the bank"),
    "two dimensions": (change("A", np.ones((R, H), np.float32)), "do not fit the bank"),
    "no tiles": (change("A", np.ones((R, 0, H), np.float32)), "do not fit the bank"),
    "integers": (change("A", np.ones((R, 2, H), int)), "do not fit the bank"),
    "ranks disagree": (change("B", np.ones((3, R + 1, H), np.float32)), "ranks disagree"),
    "two adapters": (
        lambda a: a.update({f"{KEY}2.vblora_logits_A.other": a[f"{KEY}.vblora_logits_A"]}),
        "more than one adapter",
    ),
    "NaN": (change("A", np.full((R, 2, H), np.nan, np.float32)), "row 0: found NaN"),
    "no modules": (lambda a: (drop("A")(a), drop("B")(a)), "no module that uses it"),
    "a LoRA": (
        lambda a: (a.clear(), a.update({f"{KEY}.lora_A.weight": np.ones((2, 2))})),
        "this is a standard LoRA already",
    ),
}
WRONG_TOPK = {
    "index past the bank": (
        change("A_topk_indices", np.full((R, 2, K), H, np.uint8)),
        "expected 0 to 11",
    ),
    "negative index": (change("A_topk_indices", np.full((R, 2, K), -1, np.int16)), "found -1"),
    "an index twice": (change("A_topk_indices", np.zeros((R, 2, K), np.uint8)), "duplicate index"),
    "indices of floats": (change("A_topk_indices", np.zeros((R, 2, K))), "do not fit"),
    "weights too many": (change("A_topk_weights", np.zeros((R, 2, K), np.float32)), "do not fit"),
    "weights negative": (
        change("A_topk_weights", np.full((R, 2, 1), -0.1, "f4")),
        "out of range",
    ),
    "weights above 1": (
        change("A_topk_weights", np.full((R, 2, 1), 1.1, "f4")),
        "out of range",
    ),
    "weights NaN": (
        change("A_topk_weights", np.full((R, 2, 1), np.nan, "f4")),
        "out of range",
    ),
    "weights missing": (drop("A_topk_weights"), "found indices, expected indices and weights"),
    "both forms": (
        change("A", np.zeros((R, 2, H), np.float32)),
        "incomplete checkpoint",
    ),
}


@pytest.mark.parametrize(
    ("arrays", "wrong"),
    [
        pytest.param(form, wrong, id=what)
        for form, table in ((logits_form, WRONG_LOGITS), (topk_form, WRONG_TOPK))
        for what, wrong in table.items()
    ],
)
def test_invalid_checkpoints_are_refused(arrays, wrong):
    edit, message = wrong
    changed = arrays()
    edit(changed)
    with pytest.raises(errors.VbfmtError) as error:
        read(changed)
    assert message in str(error.value)


@pytest.mark.parametrize("shape", [(0, 2**63), (2**63, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("arrays", [logits_form, topk_form])
def test_empty_factors_that_claim_an_impossible_size_are_refused(arrays, shape):
    tensors = {key: Tensor.of(array) for key, array in arrays().items()}
    for key, tensor in tensors.items():
        if key.startswith(KEY):
            tiles_first = shape[::-1] if "logits_B" in key else shape
            tensors[key] = Tensor(
                tensor.dtype, (*tiles_first, tensor.shape[2]), np.empty(0, np.uint8)
            )
    with pytest.raises(errors.SourceError, match="do not fit"):
        peft.from_tensors(tensors, topk=K)


def test_modules_with_different_k_are_refused():
    arrays = topk_form()
    for factor, tiles in (("A", (R, 2)), ("B", (3, R))):
        key = f"{KEY}2.vblora_logits_{factor}_topk"
        arrays[f"{key}_indices"] = np.tile(np.arange(K + 2, dtype="u1"), (*tiles, 1))
        arrays[f"{key}_weights"] = np.full((*tiles, K + 1), 0.1, np.float32)
    with pytest.raises(errors.SourceError, match=r"indices of A .*q2: .*expected \(·, ·, 2\)"):
        read(arrays)


def test_indices_without_columns_are_refused():
    arrays = {key: a[..., :0] if "topk" in key else a for key, a in topk_form().items()}
    with pytest.raises(errors.SourceError, match="not a size: topk: found 0 from the indices"):
        read(arrays, None)


def test_a_config_that_contradicts_the_bank_is_refused():
    with pytest.raises(errors.SourceError, match="num_vectors: found 99 in .*, expected 12"):
        read(logits_form(), CONFIG | {"num_vectors": 99})


def test_a_config_cannot_name_code_to_import(tmp_path):
    """AutoPeftModel imports what ``auto_mapping`` names."""
    mapping = {"auto_mapping": {"parent_library": "antigravity", "base_model_class": "X"}}
    packed = read(logits_form(), {**CONFIG, **mapping})
    assert packed.config is None or "antigravity" not in packed.config
    peft.write(dataclasses.replace(packed, config=json.dumps(mapping)), tmp_path / "d")
    assert "antigravity" not in (tmp_path / "d" / "adapter_config.json").read_text()


def test_the_rank_of_the_config_must_be_that_of_the_tensors():
    with pytest.raises(errors.SourceError, match="expected r = 3"):
        read(logits_form(), CONFIG | {"r": 3})


@pytest.mark.parametrize("config", ["", "[]", "{", '{"topk": NaN}', "\ufffd"])
def test_a_config_that_is_not_a_json_object_is_refused(tmp_path, config):
    folder = write_folder(tmp_path / "x", logits_form())
    (folder / "adapter_config.json").write_text(config)
    with pytest.raises(errors.SourceError, match=r"not a JSON object in .*adapter_config\.json"):
        peft.read(folder)


def test_the_error_for_a_folder_without_a_checkpoint_says_what_it_holds(tmp_path):
    with pytest.raises(errors.SourceError, match="found an empty folder"):
        peft.read(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(errors.SourceError, match="found notes.txt, expected a file adapter_model"):
        peft.read(tmp_path)
    with pytest.raises(errors.SourceError, match="no such file or folder"):
        peft.read(tmp_path / "nothing")
    with pytest.raises(errors.SourceError, match="not a checkpoint"):
        peft.read(tmp_path / "notes.txt")


ROOT = "base_model"
BANK_KEY = f"{ROOT}.vblora_vector_bank"


def keys_of(*modules):
    return [f"{module}.vblora_logits_{factor}" for module in modules for factor in "AB"]


def test_two_keys_that_differ_only_in_the_prefix_are_refused():
    keys = [BANK_KEY, *keys_of(f"{ROOT}.model.x", "x")]
    with pytest.raises(errors.SourceError, match="one tensor under two keys"):
        parse(keys)


def test_two_keys_that_differ_only_in_a_wrapper_are_refused():
    keys = [BANK_KEY, *keys_of(f"{ROOT}.model.x", f"{ROOT}.model._orig_mod.x")]
    with pytest.raises(errors.SourceError, match="two keys have the same name"):
        parse(keys)


def test_two_biases_of_one_layer_are_refused():
    others = ["m.x.base_layer.bias", "m.x.bias"]
    with pytest.raises(errors.SourceError, match="two tensors for one name: x.bias"):
        peft_layout.names_of(others, "m.", {"x"})


def test_two_tensors_with_one_key_are_not_written(tmp_path):
    """PEFT keeps the bias of an adapted layer in its ``base_layer``."""
    bias = Tensor.of(np.ones(4, np.float32))
    both = {"x.base_layer.bias": bias, "x.bias": bias}
    adapter = adapter_of({"x": (4, 8)}, tensors=both)
    with pytest.raises(
        errors.TargetError, match="two trained tensors have the same key: .*base_layer"
    ):
        peft.write(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
