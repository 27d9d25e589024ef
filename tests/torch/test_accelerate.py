"""FSDP2, started by accelerate and by transformers' Trainer, in two processes.

accelerate shards only on accelerators; these tests make it do so on CPUs, too.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers import Trainer, TrainingArguments

from tests.torch.models import config, llama, tokens
from tests.torch.processes import assert_done, run_in_two_processes
from tests.torch.test_trainer import data
from vbfmt import load
from vbfmt.torch import (
    VBLoRACallback,
    inject,
    load_checkpoint,
    param_groups,
    save_checkpoint,
    save_packed,
    to_adapter,
)

accelerate = pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow

STEPS, LATER = range(4), range(4, 6)
HEAD = {"modules_to_save": ["lm_head"], "bias": "all"}
BLOCKS = ["LlamaDecoderLayer"]


def injected(**settings):
    model = llama()
    torch.manual_seed(5)
    inject(model, config(target_modules="all-linear", **settings))
    return model


def shard_on_processors():
    from accelerate import state
    from accelerate.utils import DistributedType

    plain = state.AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **settings):
        plain(self, *args, fsdp_plugin=fsdp_plugin, **settings)
        if fsdp_plugin is not None:
            state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    state.AcceleratorState.__init__ = init
    return lambda: setattr(state.AcceleratorState, "__init__", plain)


def by_accelerate(rank, folder, settings):
    shard_on_processors()
    plugin = accelerate.FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=BLOCKS, cpu_ram_efficient_loading=False,
    )  # fmt: skip
    accelerator = accelerate.Accelerator(cpu=True, fsdp_plugin=plugin)
    model = injected(**settings)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(param_groups(model)))
    assert accelerator.is_fsdp2

    def train(steps):
        for step in steps:
            ids = tokens(step, 4)[rank::2]
            accelerator.backward(model(input_ids=ids, labels=ids).loss)
            optimizer.step()
            optimizer.zero_grad()

    train(STEPS)
    save_checkpoint(model, folder / "checkpoint")
    save_packed(model, folder / "adapter.vblora")
    accelerator.save_state(str(folder / "state"))
    train(LATER)
    save_checkpoint(model, folder / "whole")
    accelerator.load_state(str(folder / "state"))
    train(LATER)
    save_checkpoint(model, folder / "resumed")


class OurTrainer(Trainer):
    """A Trainer with its own optimizer, because with FSDP the Trainer does not accept
    ``optimizers=``."""

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(param_groups(model or self.model))
        return self.optimizer


def trainer(folder, batch_size, **settings):
    return OurTrainer(
        model=injected(),
        args=TrainingArguments(
            output_dir=str(folder), max_steps=4, save_steps=2, use_cpu=True, report_to=[],
            per_device_train_batch_size=batch_size, disable_tqdm=True, **settings,
        ),
        train_dataset=data() * 2,
        callbacks=[VBLoRACallback()],
    )  # fmt: skip


def by_trainer(rank, folder):
    shard_on_processors()
    blocks = {"transformer_layer_cls_to_wrap": BLOCKS, "cpu_ram_efficient_loading": False}
    sharded = {
        "fsdp": "full_shard auto_wrap", "fsdp_config": {"fsdp_version": 2, "version": 2, **blocks}
    }  # fmt: skip
    whole = trainer(folder / "one", 2, **sharded)
    whole.train()
    assert whole.accelerator.is_fsdp2
    save_checkpoint(whole.model, folder / "checkpoint")
    save_packed(whole.model, folder / "adapter.vblora")
    save_checkpoint(whole.model, folder / "whole")
    resumed = trainer(folder / "two", 2, **sharded)
    resumed.train(resume_from_checkpoint=str(folder / "one" / "checkpoint-2"))
    save_checkpoint(resumed.model, folder / "resumed")


WORKS = {
    "accelerate": partial(by_accelerate, settings={}),
    "accelerate, heads": partial(by_accelerate, settings=HEAD),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accelerate")
    run_in_two_processes(WORKS, folder)
    run_in_two_processes({"Trainer": by_trainer}, folder)
    return folder


def of_one_process(name, folder):
    if name == "Trainer":
        whole = trainer(folder / "single", 4)
        whole.train()
        return whole.model
    model = injected(**(HEAD if name == "accelerate, heads" else {}))
    optimizer = torch.optim.AdamW(param_groups(model))
    for step in STEPS:
        ids = tokens(step, 4)
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("name", [*WORKS, "Trainer"])
def test_two_processes_train_the_same_adapter_and_resume_bit_for_bit(folder, name):
    here = folder / name
    assert_done(here)
    loaded = llama()
    load_checkpoint(loaded, here / "checkpoint")
    found = dict(loaded.named_parameters())
    for key, tensor in of_one_process(name, here).named_parameters():
        if tensor.requires_grad:
            torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=1e-6)
    assert load(here / "adapter.vblora") == to_adapter(loaded)
    if name == "Trainer":  # the callback's file
        last = load(here / "one" / "checkpoint-4" / "adapter.vblora")
        assert last == load(here / "adapter.vblora")
    whole, resumed = (here / each / "adapter_model.safetensors" for each in ("whole", "resumed"))
    assert whole.read_bytes() == resumed.read_bytes()
