"""PEFT's VB-LoRA checkpoints in every form."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import reference
from tests.conftest import warned
from tests.strategies import adapters
from tests.tensor_files import write_tensors
from vbfmt import Adapter, Module, Rows, Tensor, digest, errors
from vbfmt._math.admixture import all_weights
from vbfmt.converters import peft
from vbfmt.converters._files import safetensors

H, B, R, K = 12, 4, 2, 2
IN, OUT = 8, 12
KEY = "base_model.model.layers.0.q"
CONFIG = {"peft_type": "VBLORA", "r": R, "topk": K, "base_model_name_or_path": "some/base"}


def logits_form(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "base_model.vblora_vector_bank": rng.standard_normal((H, B)).astype(dtype),
        f"{KEY}.vblora_logits_A": rng.standard_normal((R, IN // B, H)).astype(dtype),
        f"{KEY}.vblora_logits_B": rng.standard_normal((OUT // B, R, H)).astype(dtype),
    }


def topk_form(k=K, dtype=np.float32, h=H):
    rng = np.random.default_rng(0)
    arrays = {"base_model.vblora_vector_bank": rng.standard_normal((h, B)).astype(dtype)}
    for factor, shape in (("A", (R, IN // B)), ("B", (OUT // B, R))):
        indices = rng.permuted(np.tile(np.arange(h), (*shape, 1)), axis=-1)[..., :k]
        shares = -np.sort(-rng.dirichlet(np.ones(k), shape), axis=-1)
        key = f"{KEY}.vblora_logits_{factor}_topk_"
        arrays[f"{key}indices"] = indices.astype(np.uint8)
        arrays[f"{key}weights"] = shares[..., :-1].astype(dtype)
    return arrays


def tensors_of(arrays):
    return {key: Tensor.of(array) for key, array in arrays.items()}


def read(arrays, config=CONFIG, **options):
    return peft.from_tensors(tensors_of(arrays), config, **options)


def write_folder(folder, arrays, config=CONFIG):
    folder.mkdir()
    write_tensors(folder / "adapter_model.safetensors", tensors_of(arrays))
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_logits_of_any_float_dtype_give_the_factors_of_the_paper(dtype):
    arrays = logits_form(dtype)
    adapter = read(arrays)
    a, b = adapter.factors("layers.0.q")
    bank = arrays["base_model.vblora_vector_bank"].astype(np.float32)
    np.testing.assert_array_equal(adapter.bank, bank)
    logits_a = arrays[f"{KEY}.vblora_logits_A"].reshape(-1, H)
    exact_a = reference.subvectors(logits_a, bank, K).reshape(R, IN)
    # PEFT's B: (tile, rank, b) → (tile, b, rank) → (out, rank)
    logits_b = arrays[f"{KEY}.vblora_logits_B"].reshape(-1, H)
    exact_b = reference.subvectors(logits_b, bank, K).reshape(OUT // B, R, B)
    exact_b = exact_b.swapaxes(1, 2).reshape(OUT, R)
    assert np.abs(a - exact_a).max() <= reference.bound(bank, K)
    assert np.abs(b - exact_b).max() <= reference.bound(bank, K)


def test_a_folder_and_its_weights_file_are_the_same_adapter(tmp_path):
    folder = write_folder(tmp_path / "x", logits_form())
    assert peft.read(folder) == peft.read(folder / "adapter_model.safetensors")
    assert peft.read(folder).base_model == "some/base"


def test_without_a_config_k_must_be_given(tmp_path):
    folder = write_folder(tmp_path / "x", logits_form(), config=None)
    with pytest.raises(errors.SourceError, match="give it: `topk=K`"):
        peft.read(folder)
    assert peft.read(folder, topk=2).k == 2
    assert peft.read(folder, topk=3).k == 3


def test_the_topk_form_needs_no_config(tmp_path):
    folder = write_folder(tmp_path / "x", topk_form(), config=None)
    assert peft.read(folder).k == K


def test_a_k_that_the_model_was_not_trained_with_is_refused():
    with pytest.raises(errors.SourceError, match="3 from `topk`, 2 from adapter_config.json"):
        read(logits_form(), topk=3)


@pytest.mark.parametrize("name", ["default", "my-adapter", "7"])
def test_keys_may_contain_the_adapters_name(name):
    def named(arrays):
        return {
            key.replace("_topk", f".{name}_topk") if "_topk" in key else f"{key}.{name}": value
            for key, value in arrays.items()
        }

    for arrays in (logits_form(), topk_form()):
        assert read(named(arrays)) == read(arrays)


def test_keys_without_pefts_prefix_are_read():
    arrays = {
        key.replace("base_model.model.", "").replace("base_model.", ""): value
        for key, value in logits_form().items()
    }
    assert "layers.0.q" in read(arrays)
    assert read(arrays) == read(logits_form())


def test_the_order_of_keys_does_not_matter():
    arrays = logits_form()
    assert read(dict(reversed(arrays.items()))) == read(arrays)


def test_sets_in_the_config_are_sorted_and_file_specific_keys_removed():
    one = CONFIG | {"target_modules": ["q", "k"], "save_only_topk_weights": False}
    other = CONFIG | {"save_only_topk_weights": True, "target_modules": ["k", "q"]}
    adapter = read(logits_form(), one)
    assert digest(adapter) == digest(read(logits_form(), other))
    assert adapter.config == '{"target_modules":["k","q"]}'


def test_extras_get_the_names_of_the_base_model():
    extras = {
        f"{KEY}.base_layer.bias": np.ones(OUT, np.float32),
        "base_model.model.norm.bias": np.ones(2, np.float32),
        "base_model.model.head.weight": np.ones((2, 2), ml_dtypes.bfloat16),
        "base_model.model.score.modules_to_save.default.weight": np.zeros(1),
        "base_model.model.score.original_module.weight": np.ones(1),
    }
    adapter = read(logits_form() | extras)
    assert list(adapter.tensors) == ["head.weight", "layers.0.q.bias", "norm.bias", "score.weight"]
    assert adapter.tensors["head.weight"].dtype == "BF16"
    assert adapter.tensors["score.weight"].numpy() == 0


def test_if_a_checkpoint_has_weights_of_the_base_trained_tensors_are_kept():
    """If the output head is a target, PEFT also saves its weight in the base."""
    extras = {
        f"{KEY}.base_layer.weight": np.ones((OUT, IN), np.float32),
        "base_model.model.embed_tokens.weight": np.ones((2, 2), np.float32),
    }
    with warned() as messages:
        adapter = read(logits_form() | extras)
    assert list(adapter.tensors) == ["embed_tokens.weight"]
    assert messages == [
        "the state dict contains the base too: 1 tensors of the base model were left out, "
        "1 other trained tensors were kept"
    ]


@pytest.mark.parametrize("saved", [[["a"]], [{}], [None, 5], "a", 5])
def test_a_config_with_anything_in_modules_to_save_is_read(tmp_path, saved):
    folder = write_folder(tmp_path / "x", logits_form())
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "bias": "all", "modules_to_save": saved}))
    assert peft.read(folder).modules


@pytest.mark.parametrize("bias", ["vblora_only", "all"])
def test_biases_that_peft_trained_but_did_not_save_give_a_warning(bias):
    config = CONFIG | {"bias": bias, "modules_to_save": ["head"]}
    head = {"base_model.model.head.bias": np.ones(2), "base_model.model.score.bias": np.ones(2)}
    with warned() as messages:
        read(logits_form() | head, config)
    assert len(messages) == 1
    assert "PEFT before 0.21 trains VB-LoRA's biases and does not save them" in messages[0]


@pytest.mark.parametrize("bias", ["none", "vblora_only", "all"])
def test_saved_biases_give_no_warning(bias):
    own = {f"{KEY}.base_layer.bias": np.ones(OUT, np.float32)} if bias != "none" else {}
    with warned() as messages:
        read(logits_form() | own, CONFIG | {"bias": bias})
    assert messages == []


def test_rows_with_ties_at_the_kth_place_give_a_warning():
    arrays = logits_form()
    arrays[f"{KEY}.vblora_logits_A"][0, 1] = 0.5
    with warned() as messages:
        adapter = read(arrays)
    assert messages == [
        "1 of 10 sub-vectors have equal logits at the top-2 boundary; the lowest index was "
        "selected, but the trained model may have selected another"
    ]
    np.testing.assert_array_equal(adapter.indices[1], [0, 1])


@given(adapters(plain=True))
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_pack_of_unpack_is_the_same_adapter(tmp_path, adapter):
    folder = tmp_path / "x"
    shutil.rmtree(folder, ignore_errors=True)
    peft.write(adapter, folder)
    again = peft.read(folder)
    for name in ("bank", "indices", "weights"):
        np.testing.assert_array_equal(getattr(again, name), getattr(adapter, name))
    assert again.modules == adapter.modules
    peft.write(again, folder, overwrite=True)
    assert digest(peft.read(folder)) == digest(again)


@given(st.lists(st.floats(0.5, 1, width=32), min_size=10, max_size=10))
def test_pefts_weights_for_k_2_are_restored_bit_for_bit(weights):
    arrays = topk_form()
    given_weights = np.array(weights, dtype=np.float32)
    arrays[f"{KEY}.vblora_logits_A_topk_weights"] = given_weights[:4].reshape(R, IN // B, 1)
    arrays[f"{KEY}.vblora_logits_B_topk_weights"] = given_weights[4:].reshape(OUT // B, R, 1)
    found = peft_arrays(read(arrays))
    for key, array in arrays.items():
        if key.endswith("weights"):
            assert found[key].numpy().tobytes() == array.tobytes()


def peft_arrays(adapter):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        peft.write(adapter, Path(folder) / "x")
        found = safetensors.read(Path(folder) / "x" / "adapter_model.safetensors").tensors
        return {key: Tensor(t.dtype, t.shape, t.data.copy()) for key, t in found.items()}


@pytest.mark.parametrize(
    ("h", "dtype"), [(255, "U8"), (256, "I16"), (32767, "I16"), (32768, "I32"), (65536, "I32")]
)
def test_indices_are_written_in_the_dtype_that_peft_uses(h, dtype):
    indices = np.array([[h - 1, 0]] * 2, dtype="u1" if h <= 256 else "<u2")
    rows = Rows(indices, np.full((2, 1), 0.25, "<f4"))
    adapter = Adapter.from_rows(np.ones((h, 1)), {Module("m", 1, 1, 1): rows})
    found = peft_arrays(adapter)["base_model.model.m.vblora_logits_A_topk_indices"]
    assert found.dtype == dtype
    assert found.numpy().reshape(-1).tolist() == [h - 1, 0]


def test_a_smallest_weight_that_peft_would_lose_is_kept():
    """1 − (1 − 1e-9) is 0 in float32, so the row is reordered: PEFT computes the largest weight
    instead."""
    rows = Rows(np.array([[3, 5]] * 2, "u1"), np.full((2, 1), 1e-9, "<f4"))
    adapter = Adapter.from_rows(np.ones((8, 1)), {Module("m", 1, 1, 1): rows})
    arrays = peft_arrays(adapter)
    key = "base_model.model.m.vblora_logits_A_topk_"
    assert arrays[f"{key}indices"].numpy().tolist() == [[[5, 3]]]
    assert arrays[f"{key}weights"].numpy().tolist() == [[[np.float32(1e-9)]]]


def test_weights_whose_sum_exceeds_1_by_rounding_are_accepted():
    arrays = topk_form(k=4)
    key = f"{KEY}.vblora_logits_A_topk_weights"
    arrays[key][0, 0] = np.array([0.5, 0.3, 0.2000003], np.float32)
    assert np.float32(1) - arrays[key][0, 0].sum(dtype=np.float32) < 0
    with warned() as messages:
        adapter = read(arrays, CONFIG | {"topk": 4})
    assert "rounding made the weights of 1 of 10 rows sum to more than 1" in messages[0]
    full = all_weights(adapter.weights)[0]
    np.testing.assert_allclose(full, [0.5, 0.3, 0.2, 0], atol=1e-6)


@pytest.mark.parametrize("k", [4, 64])
def test_weights_whose_sum_exceeds_1_by_more_than_rounding_are_refused(k):
    """Each of 64 weights has a relative rounding error, so the relative error of their sum is no
    larger."""
    arrays = topk_form(k=k, h=70)
    key = f"{KEY}.vblora_logits_A_topk_weights"
    weights = np.full(k - 1, 1.02 / (k - 1), ml_dtypes.bfloat16)
    arrays = {
        name: array.astype(ml_dtypes.bfloat16) if name.endswith("_weights") else array
        for name, array in arrays.items()
    }
    arrays[key][0, 0] = weights
    with pytest.raises(errors.ContentError, match="weights are out of range"):
        read(arrays, CONFIG | {"topk": k, "num_vectors": 70})


@pytest.mark.parametrize(
    "config",
    [
        None,
        {"peft_type": "VBLORA", "topk": 2},
        CONFIG,
        CONFIG | {"target_modules": ["layers.0.q"], "bias": "none", "inference_mode": False},
        CONFIG | {"target_modules": ".*q", "fan_in_fan_out": None, "revision": "main", "z": [1]},
    ],
)
def test_unpacking_and_packing_again_gives_the_same_bytes_for_any_config(tmp_path, config):
    extras = {f"{KEY}.base_layer.bias": np.ones(OUT, np.float32), f"{KEY}2.weight": np.ones(1)}
    adapter = read(logits_form() | extras, config, topk=2)
    peft.write(adapter, tmp_path / "x")
    assert digest(peft.read(tmp_path / "x")) == digest(adapter)


def test_modules_of_different_rank_cannot_be_unpacked(tmp_path):
    from spec.golden.make import wide_indices

    with pytest.raises(errors.TargetError, match="found ranks 1, 2; write standard LoRA instead"):
        peft.write(wide_indices(), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_unpacked_configs_hold_no_keys_that_old_peft_does_not_know(tmp_path):
    """PEFT 0.13 refuses a config with a key from later versions, even if its value is null."""
    later = {"exclude_modules": None, "peft_version": "0.21.2", "auto_mapping": None}
    adapter = read(logits_form(), {**CONFIG, **later})
    peft.write(adapter, tmp_path / "x")
    config = json.loads((tmp_path / "x" / "adapter_config.json").read_text())
    assert not set(later) & set(config)
    assert digest(adapter) == digest(read(logits_form(), CONFIG))


TRUNCATE_AND_PACK = """
import os, sys
from vbfmt import pack
from vbfmt.converters.peft import rows

def truncated(*arguments, select=rows.select_top_k):
    os.truncate(os.path.join(sys.argv[1], "adapter_model.safetensors"), 100)
    return select(*arguments)

rows.select_top_k = truncated
pack(*sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ends the process on Linux and macOS only")
def test_a_checkpoint_that_is_truncated_while_it_is_read_leaves_no_output(tmp_path):
    logits = {f"{KEY}.vblora_logits_A": np.ones((R, 9999, H), "f4")}
    folder = write_folder(tmp_path / "x", logits_form() | logits)
    done = subprocess.run(
        [sys.executable, "-c", TRUNCATE_AND_PACK, folder, tmp_path / "x.vblora"], check=False
    )
    assert done.returncode == -signal.SIGBUS
    assert os.listdir(tmp_path) == ["x"]
