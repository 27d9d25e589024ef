"""Write checkpoints in PEFT's logits form, to resume training here or in PEFT."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vbfmt._files import PathLike, folders, json_file, peft_layout, storage
from vbfmt.errors import OutputExistsError, VbfmtError
from vbfmt.torch.adapter_state import tensors_of
from vbfmt.torch.adapters import adapters_of
from vbfmt.torch.checkpoint_file import require_finite
from vbfmt.torch.peft_config import peft_config
from vbfmt.torch.sharding import has_other_processes, is_writer
from vbfmt.torch.training_warnings import warn_of_layers_never_called, warn_of_others_that_train

TRAINERS_WEIGHTS = "model.safetensors"
_OF_TRAINER = re.compile(r"checkpoint-\d+")  # transformers.trainer_utils.PREFIX_CHECKPOINT_DIR


def save_checkpoint(
    model: nn.Module, path: PathLike, *, adapter_name: str | None = None, overwrite: bool = False
) -> None:
    """Write an adapter with its logits into a folder that PEFT and `load_checkpoint` can load.

    If several processes train the adapter, one or all of them may call this function; only one
    writes. If parameters are sharded (FSDP2, ZeRO-3), all must call it.

    Args:
        adapter_name: the active adapter if not given.
        overwrite: replace the files of an earlier checkpoint in that folder.

    Warns:
        VbfmtWarning: the model never called an adapted layer, or a trainable parameter is not part
            of any adapter.

    Raises:
        ModelError: the adapter is a packed one, which has no logits.
        ContentError: a logit or a bank value is NaN or infinite, or a head's value is NaN.
        OutputExistsError: `path` exists and `overwrite` is not set. It is not raised if another
            process has written the same checkpoint there.
        StorageError: the operating system reported an error.
    """
    adapters = adapters_of(model)
    write = is_writer(adapters.root.parameters())
    write_checkpoint(model, path, adapter_name=adapter_name, overwrite=overwrite, write=write)


def write_checkpoint(
    model: nn.Module,
    path: PathLike,
    *,
    adapter_name: str | None = None,
    overwrite: bool,
    write: bool = True,
    values: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint.

    In a folder ``checkpoint-N``, which the Trainer names, the weights get a second name (a hard
    link), under which the Trainer looks for them.

    Args:
        write: whether this process writes the files.
        values: parameters that are gathered already, by their names in the model.
    """
    from safetensors.torch import save_file

    adapters = adapters_of(model)
    config = peft_config(adapters, adapter_name)
    tensors = tensors_of(adapters.root, adapters.trainable(adapter_name), values)
    require_finite(tensors)
    warn_of_layers_never_called(adapters, adapter_name)
    warn_of_others_that_train(adapters)
    if not write:
        return
    text = json_file.text({**config, "save_only_topk_weights": False})
    try:
        with folders.new(path, overwrite=overwrite) as folder:
            contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
            weights = os.path.join(folder, peft_layout.WEIGHTS)
            save_file(contiguous, weights, metadata={"format": "pt"})
            storage.write(os.path.join(folder, peft_layout.CONFIG), [text], overwrite=False)
            if _OF_TRAINER.fullmatch(os.path.basename(os.path.normpath(path))):
                _link(weights, os.path.join(folder, TRAINERS_WEIGHTS))
    except OutputExistsError:
        if not (has_other_processes() and _holds(path, text, tensors)):
            raise


def _holds(path: PathLike, text: bytes, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a folder already holds this checkpoint, written by another process."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = storage.read(os.path.join(path, peft_layout.CONFIG), mmap=False)
        found = load_file(os.path.join(path, peft_layout.WEIGHTS))
    except (VbfmtError, OSError, SafetensorError):
        return False
    same = bytes(config) == bytes(text) and found.keys() == tensors.keys()
    return same and all(
        torch.equal(found[key], tensor.cpu()) and found[key].dtype == tensor.dtype
        for key, tensor in tensors.items()
    )


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        with open(source, "rb") as file:
            storage.write(target, [file.read()], overwrite=False)
