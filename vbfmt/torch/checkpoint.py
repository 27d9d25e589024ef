"""Load checkpoints in PEFT's logits form, to resume training. They may come from PEFT.

Keys and shapes: peft/tuners/vblora/{layer,model}.py, PEFT 0.13 to 0.21. The optimizer's state stays
valid, because loading copies into the existing parameters.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from vbfmt._files import PathLike
from vbfmt._files.peft_layout import BANK, PREFIX, key_of_tensor, names_of
from vbfmt.errors import ModelError, few, in_file
from vbfmt.packed import local
from vbfmt.torch.adapter_state import fill
from vbfmt.torch.adapters import (
    TrainableAdapter,
    VBLoRA,
    find_adapter,
    find_adapters,
    set_adapter,
)
from vbfmt.torch.bank import VectorBank, require_vector_bank
from vbfmt.torch.checkpoint_file import (
    LOGITS,
    ranks_of,
    read,
    require_bank,
    require_finite,
    unwrapped,
)
from vbfmt.torch.config import VBLoRAConfig
from vbfmt.torch.injection import build, install
from vbfmt.torch.linear import is_adaptable
from vbfmt.torch.peft_config import rank_pattern_of
from vbfmt.torch.plan import exact
from vbfmt.torch.preconditions import require_can_add, require_in_memory
from vbfmt.torch.sharding import whole
from vbfmt.torch.stand_ins import names_to_train
from vbfmt.torch.targets import base_modules, saved_by_peft


def load_checkpoint(
    model: nn.Module,
    path: PathLike,
    *,
    adapter_name: str = "default",
    bank: VectorBank | None = None,
    freeze_bank: bool = False,
) -> VBLoRA:
    """Load an adapter with its logits, to continue training.

    If the model has no adapter with that name yet, one is injected with the checkpoint's config.
    Otherwise the values are copied into its parameters, which stay the same objects. Either way, it
    becomes the active adapter and the only trainable one. If anything does not fit, nothing is
    changed.

    Args:
        path: a folder written by `save_checkpoint` or by PEFT, or ``hf://owner/name[@revision]``.
        bank: the bank of an adapter that this call injects; other adapters may share it. A frozen
            or shared bank is never written to, so it must equal the checkpoint's.
        freeze_bank: train only the logits, biases and heads. A checkpoint does not record whether
            its bank was frozen.

    Raises:
        ConfigError: `bank` is not a `VectorBank`, or has other sizes than the checkpoint's.
        SourceError: the checkpoint does not exist, or has no logits.
        ModelError: the checkpoint belongs to another model (the first modules that do not match are
            named), an adapter is merged, or a frozen or shared bank differs from the checkpoint's.
        ContentError: a logit or a bank value is NaN or infinite, or a head's value is NaN.
    """
    folder = Path(local(path, "checkpoint"))
    if bank is not None:
        require_vector_bank(bank)
    with in_file(folder):
        config, tensors = read(folder)
        ranks = ranks_of(tensors)
        tensors = unwrapped(tensors, ranks)
        require_finite(tensors)
        adapters = find_adapters(model)
        if adapters is not None:
            adapters.require_unmerged()
        present = find_adapter(model, adapter_name)
        if adapters is not None and isinstance(present, TrainableAdapter):
            adapter = present
            _fill_present(adapters, adapter_name, adapter, config, tensors, bank)
        else:
            require_can_add(model, adapter_name)
            adapter = _build_filled(model, config, ranks, tensors, bank)
    if freeze_bank:
        adapter.bank.freeze()
    if adapters is None or adapter is not present:
        return install(model, adapter_name, adapter)
    if adapters.active != adapter_name:
        set_adapter(model, adapter_name)
    return adapters


def _fill_present(
    adapters: VBLoRA,
    name: str,
    adapter: TrainableAdapter,
    config: VBLoRAConfig,
    tensors: Mapping[str, Tensor],
    bank: VectorBank | None,
) -> None:
    """Copy a checkpoint's values into an adapter that the model has already."""
    if bank is not None and bank is not adapter.bank:
        raise ModelError(
            "the adapter has a bank already", part=f"adapter {name}", advice="eject it first"
        )
    _require_topk(adapter, config)
    layers = adapters.layers(name)
    require_in_memory(adapters.root, layers)
    fill(adapters.root, adapter, _without_base_weights(layers, tensors))


def _build_filled(
    model: nn.Module,
    config: VBLoRAConfig,
    ranks: Mapping[str, int],
    tensors: Mapping[str, Tensor],
    bank: VectorBank | None,
) -> TrainableAdapter:
    """Return a new adapter with a checkpoint's values. The model is not changed."""
    layers = _layers(model, ranks)
    tensors = _without_base_weights(layers, tensors)
    config = replace(config, rank_pattern=rank_pattern_of(ranks))
    require_bank(tensors, config)
    config = replace(config, modules_to_save=saved_by_peft(model, config.modules_to_save))
    others = _others(model, config, layers, tensors)
    adapter = build(model, exact(model, config, layers, others), bank=bank)
    fill(model, adapter, tensors)
    return adapter


def _without_base_weights(
    layers: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors without copies of the adapted layers' own weights.

    PEFT saves such copies for an adapted embedding and output head. They are not trained.

    Raises:
        ModelError: such a copy differs from the model's weight.
    """
    copies = {key_of_tensor(f"{name}.weight", layers): layer for name, layer in layers.items()}
    for key in copies.keys() & tensors.keys():
        weight = whole(cast(Tensor, copies[key].weight))
        if weight.shape != tensors[key].shape or not torch.equal(weight, tensors[key].to(weight)):
            raise ModelError(
                "the checkpoint has another weight for a layer that it adapts",
                part=key,
                found=f"{tuple(tensors[key].shape)} with other values",
                expected=f"the model's weight, {tuple(weight.shape)}",
                advice="load this weight into the model first",
            )
    return {key: tensor for key, tensor in tensors.items() if key not in copies}


def _require_topk(adapter: TrainableAdapter, given: VBLoRAConfig) -> None:
    """Refuse a checkpoint with another k.

    The outputs would differ, and no tensor's shape would show it.
    """
    own = adapter.config.topk
    if given.topk != own:
        raise ModelError(
            "the adapter in the model has another k",
            part="topk",
            found=given.topk,
            expected=own,
            advice="eject it first, or load the checkpoint under another name",
        )


def _others(
    model: nn.Module,
    config: VBLoRAConfig,
    layers: Collection[str],
    tensors: Mapping[str, Tensor],
) -> list[str]:
    """Return the checkpoint's tensors that are neither bank nor logits, by their names in the base.

    The names come from the tensors, because the config does not show which ones PEFT wrote: it may
    name both ``classifier`` and ``score`` for a model that has only one of them, and it does not
    name resized embeddings.

    Raises:
        ModelError: the model lacks one of them, or the checkpoint lacks one that its config names.
    """
    keys = [key for key in tensors if key != BANK and LOGITS not in key]
    names = list(names_of(keys, PREFIX, layers))
    modules = dict(base_modules(model))
    promised = names_to_train(
        modules, whole=config.modules_to_save, bias=config.bias, targets=layers
    )
    astray = [name for name in names if not _has_tensor(modules, name)]
    missing = [name for name in promised if name not in names]
    if astray or missing:
        whole = names_to_train(modules, whole=config.modules_to_save, bias="none", targets=layers)
        lost = not astray and not set(missing) & set(whole)
        raise ModelError(
            "the adapter belongs to another model or config: some tensors are missing on one side",
            found=few(astray + missing),
            advice="PEFT before 0.21 does not save VB-LoRA's biases: set bias to none in "
            "adapter_config.json to continue with the base's biases"
            if lost
            else None,
        )
    # In the model's order, so that an optimizer's state fits.
    return promised + [name for name in names if name not in promised]


def _has_tensor(modules: Mapping[str, nn.Module], name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    owner = modules.get(path)
    own = {} if owner is None else {**owner._parameters, **owner._buffers}
    return own.get(leaf) is not None


def _layers(model: nn.Module, names: Mapping[str, int]) -> dict[str, nn.Module]:
    """Return the model's layers with these names.

    Raises:
        ModelError: a layer is missing or is not linear.
    """
    modules = dict(base_modules(model))
    missing = [name for name in names if name not in modules or not is_adaptable(modules[name])]
    if missing:
        raise ModelError(
            "the adapter belongs to another model: it changes layers that this one does not have",
            found=few(missing),
        )
    return {name: modules[name] for name in modules if name in names}
