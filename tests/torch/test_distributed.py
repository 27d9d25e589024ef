"""Two processes with half of the batch each give the result of one process with the whole batch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from tests.torch.models import batch, config, net
from vbfmt import load
from vbfmt.errors import OutputExistsError
from vbfmt.packed import digest
from vbfmt.torch import (
    inject,
    load_checkpoint,
    param_groups,
    save_checkpoint,
    save_packed,
    to_adapter,
)

STEPS = 10
ROWS = 8


def made():
    torch.manual_seed(9)
    model = net()
    inject(model, config(modules_to_save=["classifier"]))
    return model


def train(called, model, rows):
    optimizer = torch.optim.AdamW(param_groups(called))
    for step in range(STEPS):
        x, y = batch(step, ROWS)
        optimizer.zero_grad()
        nn.functional.cross_entropy(called(x[rows]), y[rows]).backward()
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def worker(rank, folder):
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=2)
    model = made()
    half = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    called = DistributedDataParallel(model)
    torch.save(train(called, model, half), os.path.join(folder, f"{rank}.pt"))
    if rank == 0:
        save_checkpoint(called, os.path.join(folder, "checkpoint"))
    torch.distributed.barrier()
    for times in range(5):  # both processes concurrently
        save_checkpoint(called, os.path.join(folder, "both", str(times)))
        digest = save_packed(called, os.path.join(folder, f"{times}.vblora"))
        thin = os.path.join(folder, "thin", f"{times}.vblora")
        assert save_packed(called, thin, bank="external") == digest
        save_checkpoint(called, os.path.join(folder, "both", "last"), overwrite=True)
        save_packed(called, os.path.join(folder, "last.vblora"), overwrite=True)
    torch.save(digest, os.path.join(folder, f"digest{rank}.pt"))
    torch.distributed.barrier()
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(1)
    for save, name in ((save_checkpoint, "checkpoint"), (save_packed, "0.vblora")):
        with pytest.raises(OutputExistsError):  # because the values differ
            save(called, os.path.join(folder, name))
    torch.distributed.barrier()
    (Path(folder) / f"done{rank}").touch()
    # Gloo's threads sometimes never end, in destroy_process_group or at exit.
    os._exit(0)


def test_two_processes_train_the_same_parameters_as_one(tmp_path: Path):
    (tmp_path / "both").mkdir()
    (tmp_path / "thin").mkdir()
    multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    model = made()
    expected = train(model, model, slice(None))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert found[0].keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[0][name], found[1][name])
        torch.testing.assert_close(found[0][name], tensor, rtol=0, atol=1e-6)
    assert (tmp_path / "checkpoint" / "adapter_config.json").exists()


def test_every_process_may_call_save_and_only_one_writes(tmp_path: Path):
    (tmp_path / "both").mkdir()
    (tmp_path / "thin").mkdir()
    multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    assert len([*tmp_path.glob("done*")]) == 2
    expected = net()
    load_checkpoint(expected, tmp_path / "checkpoint")
    folders = [*(tmp_path / "both").iterdir()]
    assert sorted(each.name for each in folders) == [*"01234", "last"], "nothing is left over"
    for each in folders:
        loaded = net()
        load_checkpoint(loaded, each)
        assert to_adapter(loaded) == to_adapter(expected)
    digests = {torch.load(tmp_path / f"digest{rank}.pt") for rank in range(2)}
    files = [*tmp_path.glob("*.vblora"), *tmp_path.glob("thin/*.vblora")]
    assert len(files) == 11
    assert len([*tmp_path.glob("thin/*.bank")]) == 1
    assert {digest(load(each)) for each in files} == digests
