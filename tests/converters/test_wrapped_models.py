"""Models that are compiled, wrapped or sharded before they are saved give the packed bytes of the
plain model."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from torch import multiprocessing  # noqa: E402
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (  # noqa: E402
    checkpoint_wrapper,
)

from tests.converters import models  # noqa: E402
from vbfmt import Adapter, digest, errors, load, pack  # noqa: E402
from vbfmt.converters import read  # noqa: E402


def layerwise(wrap):
    def wrapped(model):
        layers = model.model.layers
        for index, layer in enumerate(layers):
            layers[index] = wrap(layer)
        return model

    return wrapped


WRAPS = {
    "compiled": torch.compile,
    "compiled layer by layer": layerwise(torch.compile),
    "checkpoint-wrapped": layerwise(checkpoint_wrapper),
}


def adapted(folder, wrap=lambda model: model):
    model = wrap(models.base("llama", str(folder)))
    torch.manual_seed(1)
    config = peft.VBLoRAConfig(
        r=3, num_vectors=20, vector_length=8, target_modules=["q_proj", "up_proj"]
    )
    return peft.get_peft_model(model, config)


def packed(folder, base: str | None = None) -> Adapter:
    """Return the packed file of a folder, with the base's name, which PEFT does not find in
    wrappers."""
    path = Path(folder, "x.vblora")
    pack(folder, path, base_model=base, overwrite=True)
    return load(path)


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS.keys())
def test_a_model_wrapped_before_peft(tmp_path, wrap):
    adapted(tmp_path).save_pretrained(tmp_path / "plain")
    adapted(tmp_path, wrap).save_pretrained(tmp_path / "wrapped")
    base = str(tmp_path / "base")
    wanted = digest(packed(tmp_path / "plain", base))
    assert digest(packed(tmp_path / "wrapped", base)) == wanted
    # the state dict of the whole model
    (tmp_path / "wrapped" / "adapter_model.safetensors").unlink()
    state = adapted(tmp_path, wrap).state_dict()
    torch.save(state, tmp_path / "wrapped" / "pytorch_model.bin")
    assert digest(packed(tmp_path / "wrapped", base)) == wanted


def sharded(rank: int, folder: str) -> None:
    """Shard a model with FSDP2 over two processes, and save it in every form of state dict."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    try:
        _save_sharded(rank, Path(folder))
    except Exception:  # noqa: BLE001 - the test shows it
        Path(folder, f"error{rank}").write_text(traceback.format_exc())
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads sometimes never end


def _save_sharded(rank: int, folder: Path) -> None:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    model = adapted(folder)
    bank = {parameter for name, parameter in model.named_parameters() if "vector_bank" in name}
    for layer in model.base_model.model.model.layers:
        fully_shard(layer, ignored_params=bank)  # all layers share the bank
    fully_shard(model)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        (folder / "whole").mkdir()
        torch.save(whole, folder / "whole" / "pytorch_model.bin")
    (folder / f"rank{rank}").mkdir()
    torch.save(model.state_dict(), folder / f"rank{rank}" / "pytorch_model.bin")
    checkpoint.save(get_model_state_dict(model), checkpoint_id=folder / "dcp")
    checkpoint.save({"model": get_model_state_dict(model)}, checkpoint_id=folder / "nested")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder that two processes with FSDP2 have written."""
    folder = tmp_path_factory.mktemp("fsdp2")
    adapted(folder).save_pretrained(folder / "plain")
    multiprocessing.spawn(sharded, (str(folder),), nprocs=2)
    assert [path.read_text() for path in sorted(folder.glob("error*"))] == []
    return folder


def config_of(folder):
    return (folder / "plain" / "adapter_config.json").read_bytes()


def test_the_full_state_dict_of_fsdp2_is_packed(folder):
    (folder / "whole" / "adapter_config.json").write_bytes(config_of(folder))
    assert digest(read(folder / "whole")) == digest(read(folder / "plain"))


def test_tensors_that_fsdp2_has_not_gathered_are_refused(folder, tmp_path):
    for rank in range(2):
        with pytest.raises(errors.SourceError, match=r"DTensor.*full_state_dict=True"):
            pack(folder / f"rank{rank}", tmp_path / "x.vblora")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["dcp", "nested"])
def test_a_distributed_checkpoint_is_packed_after_the_advised_conversion(folder, name):
    with pytest.raises(errors.SourceError) as refused:
        read(folder / name)
    words = str(refused.value).partition("python -m ")[2].partition(",")[0].split()
    target = folder / f"{name}.consolidated"
    target.mkdir()
    subprocess.run([sys.executable, "-m", *words], cwd=target, check=True, capture_output=True)
    (target / "adapter_config.json").write_bytes(config_of(folder))
    assert digest(read(target)) == digest(read(folder / "plain"))
