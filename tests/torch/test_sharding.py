"""Models that FSDP shards over two processes are trained as in one process."""

from __future__ import annotations

import os
import traceback
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import multiprocessing, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from tests.torch.models import batch, config, net
from vbfmt import load
from vbfmt.errors import ModelError
from vbfmt.packed import digest
from vbfmt.torch import (
    VBLoRALinear,
    inject,
    load_checkpoint,
    merge,
    param_groups,
    save_checkpoint,
    save_packed,
    set_adapter,
)

STEPS = 6
ROWS = 8
HEAD = {"modules_to_save": ["classifier"], "bias": "all"}


def injected(**settings):
    torch.manual_seed(9)
    model = net()
    torch.manual_seed(9)
    inject(model, config(**settings))
    return model


def train(called, rows):
    model = getattr(called, "module", called)
    # With the default eps, AdamW's step does not depend on the scale of the gradient, so it would
    # hide a wrong scale and amplify rounding errors.
    optimizer = torch.optim.AdamW(param_groups(model), eps=1e-3)
    for step in range(STEPS):
        x, y = batch(step, ROWS)
        optimizer.zero_grad()
        for part in (slice(0, ROWS // 2), slice(ROWS // 2, ROWS)):  # accumulate gradients
            here = [i for i in range(ROWS)[part] if i in range(ROWS)[rows]]
            (nn.functional.cross_entropy(called(x[here]), y[here]) / 2).backward()
        optimizer.step()


def layerwise(model):
    for layer in [*model.encoder, model.classifier]:
        fully_shard(layer)
    return fully_shard(model)


def before(shard):
    def made():
        torch.manual_seed(9)
        model = shard(net())
        torch.manual_seed(9)
        inject(model, config())
        return model

    return made


SETUPS = {
    "fully_shard, root, before inject": (before(fully_shard), {}),
    "fully_shard, layers, before inject": (before(layerwise), {}),
    "fully_shard, root, after inject": (lambda: fully_shard(injected()), {}),
    "fully_shard, layers, after inject": (lambda: layerwise(injected()), {}),
    "fully_shard, layers, heads": (lambda: layerwise(injected(**HEAD)), HEAD),
    "FSDP1, one unit": (
        lambda: FullyShardedDataParallel(
            injected(), use_orig_params=True, device_id=torch.device("cpu")
        ),
        {},
    ),
}  # fmt: skip


def worker(rank, folder):
    """Run all functions of this file in one pair of processes, because starting them takes the most
    time."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=2)
    for name, (work, *arguments) in WORKS.items():
        here = Path(folder, name)
        try:
            work(rank, here, *arguments)
        except Exception:  # noqa: BLE001 - the test shows it
            (here / f"error{rank}").write_text(traceback.format_exc())
        else:
            (here / f"done{rank}").touch()
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads sometimes never end


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return what two processes have written, one folder for each function."""
    folder = tmp_path_factory.mktemp("sharding")
    for name in WORKS:
        (folder / name).mkdir()
    model = injected(**HEAD)
    train(model, slice(None))
    save_checkpoint(model, folder / "resumed" / "first")
    multiprocessing.spawn(worker, (str(folder),), nprocs=2)
    return folder


def assert_done(folder):
    errors = [path.read_text() for path in sorted(folder.glob("error*"))]
    assert errors == []
    assert len([*folder.glob("done*")]) == 2


def trained(rank, folder, name):
    called = SETUPS[name][0]()
    half = slice(rank, None, 2)
    train(called, half)
    fsdp1 = isinstance(called, FullyShardedDataParallel)
    whole = FullyShardedDataParallel.summon_full_params(called) if fsdp1 else nullcontext()
    if fsdp1:
        with pytest.raises(ModelError, match="FSDP1 has sharded .* save within summon_full_params"):
            save_checkpoint(called, folder / "part")
    with whole:
        if fsdp1 and rank:
            return  # every process has the whole tensor
        save_checkpoint(called, folder / "checkpoint")
        torch.save(save_packed(called, folder / "adapter.vblora"), folder / f"{rank}.pt")


@pytest.mark.parametrize("name", SETUPS)
def test_two_sharded_processes_train_the_same_adapter_as_one(folder, name):
    if name.startswith("fully_shard") and "before inject" not in name:
        require_fsdp2_averages(folder)
    folder = folder / name
    assert_done(folder)
    model = injected(**SETUPS[name][1])
    train(model, slice(None))
    loaded = net()
    load_checkpoint(loaded, folder / "checkpoint")
    expected = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = {n: p for n, p in loaded.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-6)
    digests = [torch.load(path) for path in folder.glob("[01].pt")]
    assert {*digests} == {digest(load(folder / "adapter.vblora"))}


def mean_of_gradients(rank, folder):
    """Return FSDP2's mean of the gradients 1 and 1, without vbfmt."""
    model = nn.Linear(1, 2, bias=False)
    fully_shard(model)
    model(torch.ones(1, 1)).sum().backward()
    torch.save(model.weight.grad.to_local(), folder / f"{rank}.pt")


def require_fsdp2_averages(folder):
    assert_done(folder / "mean_of_gradients")
    if torch.load(folder / "mean_of_gradients" / "0.pt").item() == 2:
        pytest.skip("FSDP2 of this PyTorch adds gradients on the CPU instead of averaging them")


def resumed(rank, folder):
    model = layerwise(injected(**HEAD))
    load_checkpoint(model, folder / "first")
    save_checkpoint(model, folder / "second")


def test_a_checkpoint_is_loaded_into_a_sharded_adapter(folder):
    assert_done(folder / "resumed")
    names = ("first", "second")
    weights = [folder / "resumed" / name / "adapter_model.safetensors" for name in names]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def on_disk(rank, folder):
    """Load what torch.distributed.checkpoint writes, and continue training from it."""
    state_of = {"options": StateDictOptions(ignore_frozen_params=True)}
    model = layerwise(injected(**HEAD))
    optimizer = torch.optim.AdamW(param_groups(model))
    one_step(model, optimizer, rank)
    states = get_state_dict(model, optimizer, **state_of)
    checkpoint.save(
        dict(zip(("model", "optimizer"), states, strict=True)), checkpoint_id=folder / "dcp"
    )
    fresh = layerwise(injected(**HEAD))
    other = torch.optim.AdamW(param_groups(fresh))
    states = get_state_dict(fresh, other, **state_of)
    loaded = dict(zip(("model", "optimizer"), states, strict=True))
    checkpoint.load(loaded, checkpoint_id=folder / "dcp")
    set_state_dict(
        fresh,
        other,
        model_state_dict=loaded["model"],
        optim_state_dict=loaded["optimizer"],
        options=StateDictOptions(ignore_frozen_params=True, strict=False),
    )
    for name, trained_on, its in (("whole", model, optimizer), ("resumed", fresh, other)):
        one_step(trained_on, its, rank)
        save_checkpoint(trained_on, folder / name)


def one_step(model, optimizer, rank):
    x, y = batch(3, ROWS)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x[rank::2]), y[rank::2]).backward()
    optimizer.step()


def test_training_resumes_from_a_distributed_checkpoint(folder):
    assert_done(folder / "on_disk")
    weights = [
        folder / "on_disk" / name / "adapter_model.safetensors" for name in ("whole", "resumed")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def refused(rank, folder):
    model = layerwise(net())
    with pytest.raises(ModelError, match="heads and biases of the base: .*sharded.*before fully"):
        inject(model, config(**HEAD))
    inject(model, config())
    with pytest.raises(ModelError, match=r"cannot merge: .*encoder\.0.*before fully_shard"):
        merge(model)
    model = layerwise(injected(**HEAD))
    with pytest.raises(ModelError, match="cannot exchange heads and biases: .*before fully_shard"):
        set_adapter(model, None)
    model = parallelize_module(net(), init_device_mesh("cpu", (2,)), {"out": ColwiseParallel()})
    with pytest.raises(ModelError, match=r"tensor parallelism\) cannot be adapted: out; load"):
        inject(model, config())
    wrapped = FullyShardedDataParallel(
        injected(),
        use_orig_params=True,
        auto_wrap_policy=ModuleWrapPolicy({VBLoRALinear}),
        device_id=torch.device("cpu"),
    )
    with pytest.raises(ModelError, match="FSDP1 has sharded the adapter's parameters; train with"):
        wrapped(batch()[0])


def test_what_a_sharded_model_cannot_do_is_refused(folder):
    assert_done(folder / "refused")


WORKS = {
    **{name: (trained, name) for name in SETUPS},
    "mean_of_gradients": (mean_of_gradients,),
    "resumed": (resumed,),
    "refused": (refused,),
    "on_disk": (on_disk,),
}
