"""Loading packed adapters in vLLM's worker, which by itself loads only folders."""

from __future__ import annotations

import dataclasses
import shutil
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.converters.gguf.random_adapter import adapter_of, random_adapter  # noqa: E402
from tests.converters.vllm.fakes import LoRARequest, Manager  # noqa: E402
from vbfmt import Module, Tensor, save  # noqa: E402
from vbfmt.converters.vllm import lora_path, worker  # noqa: E402
from vbfmt.errors import (  # noqa: E402
    ConfigError,
    ContentError,
    DigestError,
    ModelError,
    TargetError,
    VbfmtError,
)

SIZES = {"layers": 2, "hidden": 32, "feed": 48, "kv": 16, "b": 8}


@pytest.fixture
def adapter():
    return random_adapter(**SIZES)


@pytest.fixture
def path(tmp_path, adapter):
    save(adapter, tmp_path / "x.vblora")
    return tmp_path / "x.vblora"


@pytest.fixture
def load(vllm):
    """Load a path as vLLM's worker does when it serves a Llama of two layers."""
    worker.install()
    manager_class = vllm.modules["lora.worker_manager"].WorkerLoRAManager

    def call(path, manager=None, **options):
        manager = manager or Manager.of_llama()
        return manager_class(manager, **options)._load_adapter(LoRARequest("x", 1, str(path)))

    return call


def test_every_factor_is_loaded_exactly(load, path, adapter):
    loaded = load(lora_path(path))
    assert set(loaded.loras) == {module.name for module in adapter}
    for module in adapter:
        a, b = adapter.factors(module.name)
        np.testing.assert_array_equal(loaded.loras[module.name].lora_a.numpy(), a)
        np.testing.assert_array_equal(loaded.loras[module.name].lora_b.numpy(), b)


def test_smaller_ranks_are_padded_and_the_scale_is_one(vllm, load, tmp_path):
    q, o = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"
    mixed = adapter_of([Module(q, 32, 32, 2), Module(o, 32, 32, 4)], b=8)
    save(mixed, tmp_path / "x.vblora")
    pinned = lora_path(tmp_path / "x.vblora")
    config = vllm.helper.from_local_dir(pinned, 512)
    assert (config.r, config.lora_alpha, config.vllm_max_position_embeddings) == (4, 4, 512)
    found = load(pinned).loras[q]
    assert found.lora_a.shape == (4, 32)
    product = found.lora_b.numpy() @ found.lora_a.numpy()
    a, b = mixed.factors(q)
    np.testing.assert_array_equal(product, b @ a)


@pytest.mark.parametrize("place", ["/some/folder", "owner/name"])
def test_other_paths_are_loaded_by_vllm(vllm, load, place):
    assert load(place) == f"the tensors in {place}"
    assert vllm.helper.from_local_dir(place, None) == f"the config in {place}"


def test_an_external_bank_is_found_next_to_the_adapter(load, tmp_path, path, adapter):
    from vbfmt import banks

    thin = tmp_path / "folder" / "x.vblora"
    (tmp_path / "folder").mkdir()
    banks.split(path, thin, banks=tmp_path / "folder" / "banks")
    pinned = lora_path(thin)
    assert pinned.partition("@")[2] == lora_path(path).partition("@")[2]
    load(pinned)
    shutil.rmtree(tmp_path / "folder")
    found = load(pinned).loras[adapter.modules[0].name]
    np.testing.assert_array_equal(found.lora_a, adapter.factors(adapter.modules[0].name)[0])


def test_an_accepted_adapter_is_never_read_again(load, path, adapter):
    pinned = lora_path(path)
    load(pinned)
    path.unlink()
    again = load(pinned)
    for module in adapter:
        a, _ = adapter.factors(module.name)
        np.testing.assert_array_equal(again.loras[module.name].lora_a.numpy(), a)


def test_a_replaced_file_is_a_different_adapter(load, path):
    old = lora_path(path)
    other = random_adapter(**SIZES, seed=1)
    before = load(old).loras
    save(other, path, overwrite=True)
    name = other.modules[0].name
    new = load(lora_path(path)).loras[name].lora_a
    np.testing.assert_array_equal(new.numpy(), other.factors(name)[0])
    assert torch.equal(load(old).loras[name].lora_a, before[name].lora_a)
    assert not torch.equal(new, before[name].lora_a)


def test_a_file_that_was_replaced_before_it_was_read_is_refused(load, path):
    old = lora_path(path)
    save(random_adapter(**SIZES, seed=1), path, overwrite=True)
    with pytest.raises(DigestError):
        load(old)


@pytest.mark.parametrize("sizes", [{"hidden": 64}, {"hidden": 16}])
def test_a_refused_adapter_is_not_kept(load, path, sizes):
    pinned = lora_path(path)
    with pytest.raises(ModelError):
        load(pinned, Manager.of_llama(**sizes))
    path.unlink()
    with pytest.raises(VbfmtError, match="cannot read"):
        load(pinned)


def test_an_adapter_of_enormous_factors_is_refused_before_they_are_composed(
    load, tmp_path, monkeypatch
):
    """The adapter has one byte of rows for each 4 kB of factors, and the names of the model's
    modules."""
    from vbfmt import Adapter
    from vbfmt._math.admixture import Rows

    module = Module("model.layers.0.self_attn.q_proj", 1024 << 17, 1024, 1)
    rows = Rows(
        np.zeros((module.rows(1024), 1), np.uint8), np.zeros((module.rows(1024), 0), np.float32)
    )
    hostile = Adapter.from_rows(np.ones((1, 1024), np.float32), {module: rows})
    save(hostile, tmp_path / "x.vblora")
    assert (tmp_path / "x.vblora").stat().st_size < 200_000
    monkeypatch.setattr(Adapter, "iter_factors", None)
    with pytest.raises(ModelError, match="a larger model .* found 134218752 features"):
        load(lora_path(tmp_path / "x.vblora"))


def test_a_path_without_a_digest_is_refused(load, path):
    with pytest.raises(ConfigError, match="needs its digest"):
        load(path)


def test_a_damaged_file_is_refused(load, path):
    data = bytearray(path.read_bytes())
    data[-4] ^= 1  # the last bit of a weight, which only the checksum detects
    path.write_bytes(data)
    with pytest.raises(VbfmtError, match=f"in {path}"):
        load(path)


def test_tensors_that_vllm_cannot_apply_are_refused(load, tmp_path, adapter):
    bias = {f"{adapter.modules[0].name}.bias": Tensor.of(np.ones(48, np.float32))}
    save(dataclasses.replace(adapter, tensors=bias), tmp_path / "x.vblora")
    with pytest.raises(TargetError, match=r"vllm would not load it .* in .*x.vblora: found .*bias"):
        load(lora_path(tmp_path / "x.vblora"))


def test_a_head_is_loaded_exactly(vllm, load, tmp_path, adapter):
    import ml_dtypes

    weight = np.arange(96, dtype=np.float32).reshape(3, 32).astype(ml_dtypes.bfloat16)
    save(
        dataclasses.replace(adapter, tensors={"score.weight": Tensor.of(weight)}),
        tmp_path / "x.vblora",
    )
    pinned = worker.Pinned.of(tmp_path / "x.vblora")
    assert vllm.helper.from_local_dir(str(pinned), None).modules_to_save == ["score"]
    (head,) = (
        tensor
        for key, tensor in worker._tensors(pinned.load(), None, "").items()
        if "lora_" not in key
    )
    assert head.dtype == torch.bfloat16
    np.testing.assert_array_equal(head.float().numpy(), weight.astype(np.float32))


def test_the_dtype_of_the_server_is_used_and_its_range_checked(load, path, tmp_path):
    loaded = load(lora_path(path), dtype=torch.bfloat16)
    assert {weights.lora_a.dtype for weights in loaded.loras.values()} == {torch.bfloat16}
    save(random_adapter(**SIZES, scale=1e6), tmp_path / "large.vblora")
    with pytest.raises(TargetError, match=r"too large for float16 .*at most 65504; serve"):
        load(lora_path(tmp_path / "large.vblora"), dtype=torch.float16)


@pytest.mark.parametrize(
    ("dtype", "scale", "better"),
    [(torch.float16, 1e-6, "bfloat16"), (torch.bfloat16, 1e-39, "float32")],
)
def test_factors_that_the_servers_dtype_rounds_away_are_refused(
    load, tmp_path, dtype, scale, better
):
    save(random_adapter(**SIZES, scale=scale), tmp_path / "small.vblora")
    pinned = lora_path(tmp_path / "small.vblora")
    with pytest.raises(TargetError, match=rf"too small .* in .*small.vblora: A of .*{better}"):
        load(pinned, dtype=dtype)
    load(pinned, dtype=getattr(torch, better))


@pytest.mark.parametrize(("scale", "what"), [(1e6, "too large"), (1e-7, "too small")])
def test_a_head_that_the_servers_dtype_cannot_hold_is_refused(tmp_path, adapter, scale, what):
    head = Tensor.of(np.full((3, 32), scale, np.float32))
    save(dataclasses.replace(adapter, tensors={"score.weight": head}), tmp_path / "x.vblora")
    loaded = worker.Pinned.of(tmp_path / "x.vblora").load()
    with pytest.raises(TargetError, match=rf"{what} for float16 .*score"):
        worker._tensors(loaded, torch.float16, "")
    worker._tensors(loaded, torch.bfloat16, "")


@pytest.mark.parametrize(("value", "what"), [(1e300, "too large"), (1e-300, "too small")])
def test_a_float64_head_is_checked_before_it_is_converted_to_float32(adapter, value, what):
    """In float32, the values would be infinite, or 0, without an error that names the cause."""
    head = {"score.weight": Tensor.of(np.full((3, 32), value))}
    with pytest.raises(TargetError, match=rf"{what} for float32 .*score"):
        worker._tensors(dataclasses.replace(adapter, tensors=head), torch.float32, "")


def test_expert_parallelism_is_refused(load, path):
    with pytest.raises(TargetError, match="cannot be served with expert parallelism"):
        load(lora_path(path), moe_ep_spec=object())


def test_modules_that_inference_does_not_use_may_be_skipped(load, tmp_path):
    name = "model.layers.0.self_attn.q_proj"
    modules = [Module(name, 32, 32, 4), Module("mtp.layers.0.self_attn.q_proj", 32, 32, 4)]
    save(adapter_of(modules, b=8), tmp_path / "x.vblora")
    assert set(load(lora_path(tmp_path / "x.vblora"), skip_prefixes=["mtp."]).loras) == {name}


def test_a_module_that_vllm_does_not_load_is_an_error(vllm, load, path, monkeypatch):
    original = vllm.model.from_lora_tensors

    def forgetful(**options):
        model = original(**options)
        model.loras.popitem()
        return model

    monkeypatch.setattr(vllm.model, "from_lora_tensors", forgetful)
    with pytest.raises(TargetError, match="did not load every module .*found 13 modules.*14"):
        load(lora_path(path))


def test_loaded_adapters_keep_only_their_rows_and_share_a_bank(tmp_path, adapter):
    """They do not keep the file, nor a bank each."""
    kept = worker.Kept()
    adapters = []
    for number in range(3):
        rows = np.roll(adapter.indices, number, axis=0)
        other = dataclasses.replace(adapter, indices=rows)
        save(other, tmp_path / f"{number}.vblora")
        adapters.append(kept.get(worker.Pinned.of(tmp_path / f"{number}.vblora")))
        assert adapters[-1] == other
    assert len({id(each.bank) for each in adapters}) == 1
    for each in adapters:
        assert all(array.base is None for array in (each.bank, each.indices, each.weights))
        assert sys.getsizeof(each.indices) < each.indices.nbytes + 200


def test_values_are_checked_before_anything_is_loaded(load, tmp_path, adapter):
    with pytest.raises(ContentError):
        dataclasses.replace(adapter, weights=np.full_like(adapter.weights, 2))
    (tmp_path / "x.vblora").write_bytes(b"not an adapter")
    with pytest.raises(VbfmtError):
        load(f"{tmp_path}/x.vblora@sha256:{'0' * 64}")
