"""Read a checkpoint folder in PEFT's logits form, without a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from vbfmt._files import json_file, peft_layout, storage
from vbfmt._files.peft_layout import BANK, PREFIX, key_of_tensor, names_of
from vbfmt.errors import ContentError, SourceError
from vbfmt.torch.config import VBLoRAConfig

LOGITS = ".vblora_logits_"
"""Every key of logits contains this, and no other key does."""

_A = f"{LOGITS}A"
_PICKLE = "adapter_model.bin"


def read(folder: Path) -> tuple[VBLoRAConfig, dict[str, Tensor]]:
    """Return the config and the tensors of a checkpoint folder.

    Raises:
        SourceError: there is no such checkpoint.
        StorageError: the checkpoint cannot be read.
    """
    if folder.is_file():
        raise SourceError(
            "not a checkpoint folder",
            expected=f"a folder with {peft_layout.CONFIG}",
            advice="load a packed file with load_packed (inference) or warm_start (new training)",
        )
    config = json_file.read(folder / peft_layout.CONFIG)
    return VBLoRAConfig.from_peft(config, layers_known=True), _read_tensors(folder)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights = folder / peft_layout.WEIGHTS
    if not weights.exists() and (folder / _PICKLE).exists():
        raise SourceError(
            "a pickle",
            part=_PICKLE,
            expected=peft_layout.WEIGHTS,
            advice="if you trust it, load it and save it with save_pretrained(…, "
            "safe_serialization=True)",
        )
    storage.read(weights, mmap=True)  # raises our errors: no file, a folder, no permission
    try:
        tensors: dict[str, Tensor] = load_file(weights)
    except SafetensorError as error:
        raise SourceError("not a safetensors file", part=weights.name, found=error) from None
    return tensors


def ranks_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the rank of each module in the checkpoint, by name.

    Raises:
        SourceError: the checkpoint has no logits.
    """
    ranks = {
        key.removeprefix(PREFIX).removesuffix(_A): tensor.shape[0]
        for key, tensor in tensors.items()
        if key.startswith(PREFIX) and key.endswith(_A) and tensor.ndim == 3
    }
    if not ranks or BANK not in tensors:
        short = any(key.endswith("_topk_indices") for key in tensors)
        raise SourceError(
            "a checkpoint without logits cannot be trained further",
            found="PEFT's top-k form" if short else f"keys like {next(iter(tensors), 'none')}",
            expected=f"{BANK} and keys ending in {_A}",
            advice="pack it, then load_packed or warm_start" if short else None,
        )
    return ranks


def unwrapped(tensors: Mapping[str, Tensor], modules: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors under the keys that `save_checkpoint` writes.

    With ``bias="all"``, PEFT writes the biases of fully trained modules twice, the second time
    under the names of its wrappers.

    Raises:
        SourceError: two tensors get the same key.
    """
    mixtures = {key: tensor for key, tensor in tensors.items() if key == BANK or LOGITS in key}
    names = names_of([key for key in tensors if key not in mixtures], PREFIX, modules)
    return mixtures | {key_of_tensor(name, modules): tensors[key] for name, key in names.items()}


def require_bank(tensors: Mapping[str, Tensor], config: VBLoRAConfig) -> None:
    """Raise SourceError if the bank's shape differs from the config."""
    expected = (config.num_vectors, config.vector_length)
    if tuple(tensors[BANK].shape) != expected:
        raise SourceError(
            "the bank's shape differs from the config",
            part=BANK,
            found=tuple(tensors[BANK].shape),
            expected=expected,
        )


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity in the bank and the logits, and NaN in other tensors.

    A head may hold a mask, which may contain infinities.

    Raises:
        ContentError: a tensor has such a value. The message has its key.
    """
    for key, tensor in tensors.items():
        mixture = key == BANK or LOGITS in key
        if mixture and not tensor.is_floating_point():
            raise ContentError("values are not floating-point", part=key, found=tensor.dtype)
        bad = int((~tensor.isfinite() if mixture else tensor.isnan()).sum())
        if bad:
            raise ContentError(
                "values are not finite" if mixture else "values are NaN",
                part=key,
                found=f"{bad} of {tensor.numel()}",
                advice="the training run diverged, or the logits were rebuilt from a top-k form"
                if mixture
                else "the training run diverged",
            )
