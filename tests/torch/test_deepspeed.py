"""DeepSpeed's ZeRO in two processes trains the same adapter as one process.

This needs ``pip install deepspeed``, and a C++ compiler for its communication on CPUs.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from tests.torch.models import batch, net
from tests.torch.processes import assert_done, run_in_two_processes
from tests.torch.test_sharding import HEAD, injected
from vbfmt import load
from vbfmt.errors import ModelError
from vbfmt.torch import (
    load_checkpoint,
    merge,
    num_stored_parameters,
    param_groups,
    save_checkpoint,
    save_packed,
    to_adapter,
)

deepspeed = pytest.importorskip("deepspeed")

STEPS = 6
ALL_SPLIT = {"stage3_param_persistence_threshold": 0}


def engine_of(model, stage, **zero):
    deepspeed.init_distributed("gloo", verbose=False)
    settings = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": stage, **zero},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    optimizer = torch.optim.AdamW(param_groups(model))
    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]


def train(engine, rank, steps=range(STEPS)):
    for step in steps:
        x, y = batch(step, 8)
        engine.backward(nn.functional.cross_entropy(engine(x[rank::2]), y[rank::2]))
        engine.step()


def save(model, stage, rank, folder):
    # With ZeRO-3, all processes gather and one writes. With other stages, all have the same
    # tensors.
    save_checkpoint(model, folder / "checkpoint")
    save_packed(model, folder / "adapter.vblora")
    assert num_stored_parameters(model) > 0


def trained(rank, folder, stage, zero, settings):
    model = injected(**settings)
    engine = engine_of(model, stage, **zero)
    train(engine, rank)
    save(model, stage, rank, folder)


def resumed(rank, folder, stage):
    for name in ("whole", "again"):
        (folder / name).mkdir(exist_ok=True)
    model = injected()
    engine = engine_of(model, stage)
    train(engine, rank, range(3))
    engine.save_checkpoint(str(folder / "engine"), exclude_frozen_parameters=True)
    train(engine, rank, range(3, STEPS))
    save(model, stage, rank, folder / "whole")
    engine.load_checkpoint(str(folder / "engine"), load_module_strict=False)
    train(engine, rank, range(3, STEPS))
    save(model, stage, rank, folder / "again")


def refused(rank, folder, stage):
    model = injected()
    save_checkpoint(model, folder / f"{rank}")
    engine_of(model, stage)
    with pytest.raises(ModelError, match="DeepSpeed's optimizer has copies .*load before deepsp"):
        load_checkpoint(model, folder / f"{rank}")
    if stage == 3:
        with pytest.raises(ModelError, match="cannot merge: .* do it before deepspeed.initialize"):
            merge(model)


SETUPS = {
    "ZeRO-1": (1, {}, {}),
    "ZeRO-2": (2, {}, HEAD),
    "ZeRO-3": (3, {}, {}),
    "ZeRO-3, all split": (3, ALL_SPLIT, HEAD),
}
WORKS = {
    **{
        name: partial(trained, stage=stage, zero=zero, settings=settings)
        for name, (stage, zero, settings) in SETUPS.items()
    },
    **{f"resumed {stage}": partial(resumed, stage=stage) for stage in (2, 3)},
    **{f"refused {stage}": partial(refused, stage=stage) for stage in (1, 3)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deepspeed")
    run_in_two_processes(WORKS, folder)
    return folder


@pytest.mark.parametrize("name", SETUPS)
def test_two_processes_train_the_same_adapter_as_one(folder, name):
    assert_done(folder / name)
    model = injected(**SETUPS[name][2])
    optimizer = torch.optim.AdamW(param_groups(model))
    for step in range(STEPS):
        x, y = batch(step, 8)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    loaded = net()
    load_checkpoint(loaded, folder / name / "checkpoint")
    found = dict(loaded.named_parameters())
    for key, tensor in model.named_parameters():
        if tensor.requires_grad:
            torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=1e-6)
    assert load(folder / name / "adapter.vblora") == to_adapter(loaded)


@pytest.mark.parametrize("stage", [2, 3])
def test_training_resumes_bit_for_bit(folder, stage):
    here = folder / f"resumed {stage}"
    assert_done(here)
    assert load(here / "whole" / "adapter.vblora") == load(here / "again" / "adapter.vblora")
    weights = [
        here / name / "checkpoint" / "adapter_model.safetensors" for name in ("whole", "again")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("stage", [1, 3])
def test_changes_that_deepspeed_would_undo_are_refused(folder, stage):
    assert_done(folder / f"refused {stage}")
