"""Checkpoints to resume from, in PEFT's logits form: PEFT loads ours, and we load PEFT's.

Keys and shapes: peft/tuners/vblora/{layer,model}.py, PEFT 0.13 to 0.21. The optimizer's state is
the caller's to keep; loading copies into the parameters that are there, so it stays valid.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vbfmt import peft_layout, storage
from vbfmt.errors import ContentError, ModelError, SourceError, VbfmtError
from vbfmt.peft_layout import BANK, PREFIX, key_of_logits, key_of_tensor
from vbfmt.torch.adapters import VBLoRA, adapters_of, find_adapters
from vbfmt.torch.admixture import Admixture
from vbfmt.torch.bank import VectorBank
from vbfmt.torch.config import VBLoRAConfig
from vbfmt.torch.injection import attach, require_free_name
from vbfmt.torch.linear import VBLoRALinear, is_adaptable
from vbfmt.torch.targets import base_modules, matches

PathLike = str | os.PathLike[str]

_A = ".vblora_logits_A"
_PICKLE = "adapter_model.bin"
_SHOWN = 3


def save_checkpoint(
    model: nn.Module, path: PathLike, *, name: str | None = None, overwrite: bool = False
) -> None:
    """Write an adapter with its logits: a folder that PEFT and `load_checkpoint` load.

    Args:
        name: of the adapter; the active one if not given.
        overwrite: replace the two files of an earlier checkpoint in that folder.

    Raises:
        ModelError: the adapter is a packed one: it has no logits.
        ContentError: a logit or a bank value is NaN or infinite.
        OutputExistsError, StorageError
    """
    from safetensors.torch import save_file

    adapters = adapters_of(model)
    config = peft_config(adapters, name)
    tensors = _tensors(adapters, name)
    _require_finite(tensors)
    text = peft_layout.config_text({**config, "save_only_topk_weights": False})
    with storage.new_folder(path, overwrite=overwrite) as folder:
        save_file(tensors, os.path.join(folder, peft_layout.WEIGHTS), metadata={"format": "pt"})
        storage.write(os.path.join(folder, peft_layout.CONFIG), [text], overwrite=False)


def load_checkpoint(model: nn.Module, path: PathLike, *, name: str = "default") -> VBLoRA:
    """Load an adapter with its logits, to go on training.

    If the model has no adapter of that name yet, one is put in, as the checkpoint's config says.
    Otherwise the values are copied into its parameters, which stay the same objects.

    Args:
        path: a folder written by `save_checkpoint` or by PEFT.

    Raises:
        SourceError: no such checkpoint, or one without logits.
        ModelError: it belongs to another model; the first modules that do not match are named.
        ContentError: a logit or a bank value is NaN or infinite.
    """
    folder = Path(path)
    try:
        config, tensors = _read(folder)
        ranks = _ranks(tensors)
        adapters = find_adapters(model)
        if adapters is None or name not in adapters.adapters:
            require_free_name(model, name)
            layers = _layers(model, ranks)
            config = replace(config, rank_pattern=_pattern(ranks, config.rank))
            _require_bank(tensors, config)
            adapters = attach(model, config, layers, name=name)
        elif not adapters.adapter(name).trainable:
            raise ModelError(
                "a packed adapter has that name",
                found=name,
                advice="choose another name or eject it first",
            )
        own = _tensors(adapters, name)
        _require_same(own, tensors)
        _require_finite(tensors)
        with torch.no_grad():
            _copy(adapters, name, tensors)
    except VbfmtError as error:
        raise error.in_file(folder) from None
    return adapters


def peft_config(adapters: VBLoRA, name: str | None) -> dict[str, Any]:
    """The adapter's config as PEFT has it, with targets that say exactly which modules it has.

    Raises:
        ModelError: it is a packed adapter.
    """
    adapter = adapters.adapter(name)
    if adapter.config is None:
        raise ModelError(
            "a packed adapter cannot be saved again: it holds no logits",
            part=f"adapter {name or adapters.active}",
            advice="copy the file it was loaded from",
        )
    layers = adapters.layers(name or adapters.active or "")
    ranks = {
        key: _update(layer, name or adapters.active or "").rank for key, layer in layers.items()
    }
    known = getattr(adapters.root, "name_or_path", None)
    config = replace(
        adapter.config,
        target_modules=_exact_targets(adapters.root, list(layers)),
        exclude_modules=(),
        rank_pattern=_pattern(ranks, adapter.config.rank),
        base_model=adapter.config.base_model or (known if isinstance(known, str) else None) or None,
    )
    if len(set(ranks.values())) == 1:
        config = replace(config, rank=next(iter(ranks.values())))
    fan_in_fan_out = all(layer.fan_in_fan_out for layer in layers.values())
    return {**config.as_peft(), "fan_in_fan_out": fan_in_fan_out}


def _tensors(adapters: VBLoRA, name: str | None) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's keys; those of A and the bank are views."""
    adapter, name = adapters.adapter(name), name or adapters.active or ""
    layers = adapters.layers(name)
    tensors = {BANK: cast(VectorBank, adapter.bank).weight.detach()}
    for key, layer in layers.items():
        for factor, logits in _as_peft(_update(layer, name)).items():
            tensors[key_of_logits(key, factor)] = logits.contiguous()
    for key, tensor in adapter.stand_ins.tensors(adapters.root).items():
        tensors[key_of_tensor(key, layers)] = tensor.detach().contiguous()
    return tensors


def _as_peft(update: Admixture) -> dict[str, Tensor]:
    """The logits of A (r, in/b, h) and of B (out/b, r, h), as views."""
    rows_a, rows_b = torch.split(update.logits.detach(), update.rows)
    h = rows_a.shape[1]
    return {
        "A": rows_a.view(update.rank, -1, h),
        "B": rows_b.view(update.rank, -1, h).transpose(0, 1),
    }


def _copy(adapters: VBLoRA, name: str, tensors: Mapping[str, Tensor]) -> None:
    adapter = adapters.adapter(name)
    layers = adapters.layers(name)
    cast(VectorBank, adapter.bank).weight.copy_(tensors[BANK])
    for key, layer in layers.items():
        for factor, logits in _as_peft(_update(layer, name)).items():
            logits.copy_(tensors[key_of_logits(key, factor)])
    for key, tensor in adapter.stand_ins.tensors(adapters.root).items():
        tensor.copy_(tensors[key_of_tensor(key, layers)])


def _update(layer: VBLoRALinear, name: str) -> Admixture:
    return cast(Admixture, layer.updates[name])


def _exact_targets(root: nn.Module, layers: list[str]) -> str | list[str]:
    """Targets that fit these layers and nothing else: last components, names, or an expression."""
    everything = [name for name, _ in base_modules(root) if name]
    leaves = sorted({name.rpartition(".")[2] for name in layers})
    for targets in (leaves, sorted(layers)):
        if [name for name in everything if matches(name, targets)] == layers:
            return targets
    return "|".join(re.escape(name) for name in sorted(layers))


def _pattern(ranks: Mapping[str, int], common: int) -> dict[str, int]:
    """The ranks by name where there is more than one."""
    return dict(ranks) if len({*ranks.values()}) > 1 else {}


def _read(folder: Path) -> tuple[VBLoRAConfig, dict[str, Tensor]]:
    """Config and tensors of a checkpoint folder."""
    if folder.is_file():
        raise SourceError(
            "not a checkpoint folder",
            expected=f"a folder with {peft_layout.CONFIG}",
            advice="a packed file is for inference (load_packed) or a new start (warm_start)",
        )
    config = peft_layout.read_config(folder / peft_layout.CONFIG)
    return VBLoRAConfig.from_peft(config), _read_tensors(folder)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights = folder / peft_layout.WEIGHTS
    if not weights.exists() and (folder / _PICKLE).exists():
        raise SourceError(
            "a pickle",
            part=_PICKLE,
            expected=peft_layout.WEIGHTS,
            advice="save it with save_pretrained(…, safe_serialization=True) where you trust it",
        )
    storage.read(weights, mmap=True)  # for its errors: no file, a folder, no permission
    try:
        tensors: dict[str, Tensor] = load_file(weights)
    except SafetensorError as error:
        raise SourceError("not a safetensors file", part=weights.name, found=error) from None
    return tensors


def _ranks(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Module name → rank, of the checkpoint."""
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
            advice="pack it, then load_packed for inference or warm_start" if short else None,
        )
    return ranks


def _layers(model: nn.Module, names: Mapping[str, int]) -> dict[str, nn.Module]:
    """The model's layers of these names.

    Raises:
        ModelError: some are missing or no linear layers.
    """
    modules = dict(base_modules(model))
    missing = [name for name in names if name not in modules or not is_adaptable(modules[name])]
    if missing:
        raise ModelError(
            "the adapter belongs to another model: it changes layers that this one does not have",
            found=_few(missing),
        )
    return {name: modules[name] for name in modules if name in names}


def _require_bank(tensors: Mapping[str, Tensor], config: VBLoRAConfig) -> None:
    expected = (config.num_vectors, config.vector_length)
    if tuple(tensors[BANK].shape) != expected:
        raise SourceError(
            "the bank is not what the config says",
            part=BANK,
            found=tuple(tensors[BANK].shape),
            expected=expected,
        )


def _require_same(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """The checkpoint has exactly the tensors that the adapter in the model has."""
    other = [key for key in {**own, **given} if (key in own) != (key in given)]
    if other:
        raise ModelError(
            "the adapter belongs to another model or config: tensors that only one of both has",
            found=_few(other),
        )
    for key, tensor in own.items():
        if tensor.shape != given[key].shape:
            raise ModelError(
                "the adapter belongs to another model or config: shapes differ",
                part=key,
                found=tuple(given[key].shape),
                expected=tuple(tensor.shape),
            )


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        if (key == BANK or ".vblora_logits_" in key) and not bool(tensor.isfinite().all()):
            raise ContentError(
                "values that are not finite",
                part=key,
                found=f"{int((~tensor.isfinite()).sum())} of {tensor.numel()}",
                advice="the training run diverged, or the logits were rebuilt from a top-k form",
            )


def _few(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
