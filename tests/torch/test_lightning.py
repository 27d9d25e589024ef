"""Lightning: resuming is as exact as its checkpoints allow, as for a model without vbfmt.

Needs lightning, and torchdata for a stateful data loader; the tests do not install them.
"""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.torch.models import batch, config, net
from vbfmt import load
from vbfmt.torch import inject, load_checkpoint, param_groups, save_checkpoint, save_packed

lightning = pytest.importorskip("lightning.pytorch")

EPOCH = 6  # batches
STEPS = 12


class Module(lightning.LightningModule):
    def __init__(self, adapted: bool, dropout: float) -> None:
        super().__init__()
        self.net = net()
        if adapted:
            torch.manual_seed(1)
            inject(self.net, config(vblora_dropout=dropout))
        else:
            self.net.encoder[0] = nn.Sequential(nn.Dropout(dropout), self.net.encoder[0])
        self.adapted = adapted
        self.keeps_random_state = False

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        parameters = param_groups(self.net) if self.adapted else self.net.parameters()
        return torch.optim.AdamW(parameters, lr=1e-2)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["random"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint):
        self.random = checkpoint["random"]

    def on_train_batch_start(self, *_):
        if self.keeps_random_state and self.random is not None:
            torch.set_rng_state(self.random)
            self.random = None


def loader(kind=DataLoader, shuffle=True):
    own = torch.Generator().manual_seed(
        7
    )  # otherwise an epoch uses dropout's random state for a seed
    data = TensorDataset(*batch(1, 4 * EPOCH))
    return kind(data, batch_size=4, shuffle=shuffle, generator=own)


def trained(module, data, folder=None, resumed=None):
    lightning.seed_everything(3, verbose=False)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    callbacks = []
    if folder is not None:
        saving = lightning.callbacks.ModelCheckpoint
        callbacks = [saving(folder, "{step}", every_n_train_steps=1, save_top_k=-1)]
    trainer = lightning.Trainer(
        max_steps=STEPS, max_epochs=-1, accelerator="cpu", logger=False, callbacks=callbacks,
        enable_checkpointing=folder is not None, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=resumed)
    return module


def difference(module, other):
    parameters = dict(other.named_parameters())
    return max(
        (parameter - parameters[name]).abs().max().item()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    )


def apart(folder, adapted, at, dropout, keeps, **data):
    """Return the difference between a resumed run and an uninterrupted one."""
    whole = trained(Module(adapted, dropout), loader(**data), folder)
    resumed = Module(adapted, dropout)
    resumed.keeps_random_state = keeps
    trained(resumed, loader(**data), resumed=folder / f"step={at}.ckpt")
    return difference(whole, resumed)


@pytest.mark.parametrize("adapted", [True, False])
def test_training_resumes_bit_for_bit_after_an_epoch(tmp_path, adapted):
    assert apart(tmp_path, adapted, EPOCH, 0.0, False, shuffle=False) == 0


@pytest.mark.parametrize("adapted", [True, False])
def test_within_an_epoch_lightning_resumes_any_model_with_other_batches(tmp_path, adapted):
    assert apart(tmp_path, adapted, EPOCH + 3, 0.0, False, shuffle=False) > 1e-3


@pytest.mark.parametrize("adapted", [True, False])
def test_lightning_does_not_store_the_random_state_of_dropout(tmp_path, adapted):
    assert apart(tmp_path, adapted, EPOCH, 0.3, False, shuffle=False) > 1e-3
    assert apart(tmp_path, adapted, EPOCH, 0.3, True, shuffle=False) == 0


@pytest.mark.parametrize("adapted", [True, False])
def test_a_stateful_loader_resumes_bit_for_bit_within_an_epoch(tmp_path, adapted):
    kind = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    assert apart(tmp_path, adapted, EPOCH + 3, 0.3, True, kind=kind) == 0


def test_the_adapter_is_saved_and_packed(tmp_path):
    module = trained(Module(True, 0.1), loader())
    save_checkpoint(module.net, tmp_path / "checkpoint")
    save_packed(module.net, tmp_path / "adapter.vblora")
    other = net()
    load_checkpoint(other, tmp_path / "checkpoint")
    save_packed(other, tmp_path / "again.vblora")
    assert load(tmp_path / "again.vblora") == load(tmp_path / "adapter.vblora")
