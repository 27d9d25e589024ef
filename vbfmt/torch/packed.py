"""Save a trained adapter as a packed file; load one for inference or as a start for training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from vbfmt._files import PathLike, outputs, peft_layout
from vbfmt._math.admixture import Rows, all_weights, rows_from_selection
from vbfmt._math.selection import select_top_k
from vbfmt.adapter import Adapter
from vbfmt.errors import DigestError, OutputExistsError, VbfmtError, warn
from vbfmt.module import Module
from vbfmt.packed import Form, load, save
from vbfmt.packed import digest as digest_of
from vbfmt.torch.adapters import (
    AttachedAdapter,
    TrainableAdapter,
    VBLoRA,
    adapters_of,
    find_adapter,
)
from vbfmt.torch.admixture import Admixture, FixedFactors
from vbfmt.torch.bank import VectorBank
from vbfmt.torch.checkpoint_file import require_finite
from vbfmt.torch.config import VBLoRAConfig, is_number, require_setting
from vbfmt.torch.injection import build, install
from vbfmt.torch.linear import VBLoRALinear
from vbfmt.torch.matching import matching_layers, require_tensors
from vbfmt.torch.peft_config import peft_config, rank_pattern_of
from vbfmt.torch.plan import exact
from vbfmt.torch.preconditions import require_can_add, require_in_memory
from vbfmt.torch.sharding import has_other_processes, is_writer, require_whole, whole
from vbfmt.torch.stand_ins import StandIns
from vbfmt.torch.tensors import cast_like, to_format, to_torch
from vbfmt.torch.training_warnings import warn_of_layers_never_called, warn_of_others_that_train

_LEAST_WEIGHT = 2.0**-149
"""The smallest positive float32. It replaces a weight that was rounded to zero."""


def save_packed(
    model: nn.Module,
    path: PathLike,
    *,
    adapter_name: str | None = None,
    overwrite: bool = False,
    bank: Form = "embedded",
    banks: PathLike | None = None,
) -> str:
    """Pack an adapter of the model; `save_checkpoint` and then ``vbfmt pack`` give the same bytes.

    Args:
        adapter_name: the active adapter if not given.
        bank, banks: ``bank="external"`` writes the bank to a separate file, which adapters can
            share, in the folder `banks` or beside `path`, as `vbfmt.save` does.

    If several processes train the adapter, one or all of them may call this function; only one
    writes. If parameters are sharded (FSDP2, ZeRO-3), all must.

    Returns:
        The file's digest, ``sha256:…``.

    Warns:
        VbfmtWarning: the model never called an adapted layer, or a trainable parameter is not part
            of any adapter.

    Raises:
        ModelError: the adapter came from a packed file.
        ContentError: a logit or a value of a head is NaN, or the bank is not finite.
        TargetError: `path` ends like another kind of file, such as ``.safetensors``.
        OutputExistsError: `path` exists and `overwrite` is not set. It is not raised if another
            process has written the same file there.
        StorageError: the operating system reported an error.
    """
    outputs.require_packed_name(path)
    adapter = to_adapter(model, adapter_name=adapter_name)
    warn_of_layers_never_called(adapters_of(model), adapter_name)
    warn_of_others_that_train(adapters_of(model))
    if not is_writer(adapters_of(model).root.parameters()):
        return digest_of(adapter)
    try:
        return save(adapter, path, overwrite=overwrite, bank=bank, banks=banks)
    except OutputExistsError:
        own = digest_of(adapter)
        if not (has_other_processes() and _has_digest(path, own, banks)):
            raise
        return own


def to_adapter(model: nn.Module, *, adapter_name: str | None = None) -> Adapter:
    """Return an adapter of the model as `save_packed` packs it. Arguments and errors are the
    same."""
    adapters = adapters_of(model)
    config = peft_config(adapters, adapter_name)
    attached, layers = adapters.trainable(adapter_name), adapters.layers(adapter_name)
    updates = attached.updates
    base_model, base_revision = peft_layout.base_of(config)
    others = attached.stand_ins.tensors(adapters.root)
    require_whole([attached.bank.weight, *(update.logits for update in updates.values())])
    require_finite(others)
    bank = whole(attached.bank.weight)
    adapter = Adapter.from_rows(
        cast_like(bank, torch.empty(0), "bank").numpy().copy(),
        {
            _module(key, layers[key], updates[key].rank): rows
            for key, rows in _rows(updates).items()
        },
        tensors={key: to_format(whole(tensor)) for key, tensor in others.items()},
        base_model=base_model,
        base_revision=base_revision,
    )
    return replace(adapter, config=peft_layout.canonical(config, adapter))


def load_packed(
    model: nn.Module,
    source: Adapter | PathLike,
    *,
    adapter_name: str = "default",
    digest: str | None = None,
) -> VBLoRA:
    """Add a packed adapter to the model, for inference, and make it the active one.

    Its factors are composed once, by this call. A packed adapter with the same name is replaced.

    Args:
        source: an adapter, or the path of its packed file.
        digest: the digest that the adapter must have; None for any.

    Raises:
        ModelError: the adapter belongs to another model (the first modules that do not match are
            named), one of its heads does not fit the model's dtype, or a trainable adapter has that
            name.
        VbfmtError: the file is damaged or cannot be read.
    """
    adapter = source if isinstance(source, Adapter) else load(source, digest=digest)
    if isinstance(source, Adapter) and digest is not None:
        _require_digest(adapter, digest)
    present = find_adapter(model, adapter_name)
    if present is None or isinstance(present, TrainableAdapter):
        require_can_add(model, adapter_name)
    try:
        layers = matching_layers(model, adapter)
        require_tensors(model, adapter)
        require_in_memory(model, [*layers, *(name.rpartition(".")[0] for name in adapter.tensors)])
    except VbfmtError as error:
        raise (error if isinstance(source, Adapter) else error.in_file(source)) from None
    updates = {}
    for module, a, b in adapter.iter_factors():
        device = cast(torch.Tensor, layers[module.name].weight).device
        factors = (torch.from_numpy(factor).to(device) for factor in (a, b))
        updates[module.name] = FixedFactors(*factors)
    others = {key: to_torch(tensor) for key, tensor in adapter.tensors.items()}
    return install(model, adapter_name, AttachedAdapter(updates, StandIns.fixed(model, others)))


def warm_start(
    model: nn.Module,
    source: Adapter | PathLike,
    *,
    adapter_name: str = "default",
    gap: float = 0.1,
    freeze_bank: bool = False,
) -> VBLoRA:
    """Add a trainable adapter to the model that initially computes the same as a packed one.

    This starts a new training run; it does not resume one. A packed file holds the k selected
    weights of each sub-vector, not its logits. So the h − k unselected logits all start `gap` below
    the smallest selected one. The selected logits may differ from the original ones by a constant,
    which the softmax ignores. The optimizer starts without state. With a larger `gap`, fewer
    sub-vectors change their selection at first.

    Args:
        source: an adapter, or the path of its packed file.
        gap: distance between the smallest selected logit and the unselected ones; finite and > 0.
            PEFT's initial logits have a standard deviation of 0.1.
        freeze_bank: train only the logits, biases and heads.

    Raises:
        ModelError: the adapter belongs to another model, one of its heads does not fit the model's
            dtype, or the name is taken.
        ConfigError: `gap` is out of range.
        VbfmtError: the file is damaged or cannot be read.
    """
    fits = is_number(gap) and 0 < gap < np.inf
    require_setting(fits, "gap", gap, "a finite number above 0, such as 0.1")
    adapter = source if isinstance(source, Adapter) else load(source)
    require_can_add(model, adapter_name)
    layers = matching_layers(model, adapter)
    require_tensors(model, adapter)
    bank = VectorBank.from_packed(adapter, frozen=freeze_bank)
    bank = bank.to(cast(torch.Tensor, next(iter(layers.values())).weight).device)
    plan = exact(model, _config(adapter), layers, adapter.tensors)
    attached = build(model, plan, bank=bank)
    logits = _logits(adapter, gap)
    with torch.no_grad():
        for key, update in attached.updates.items():
            update.logits.copy_(torch.from_numpy(logits[adapter.rows(key)]))
        for key, own in attached.stand_ins.tensors(model).items():
            own.copy_(cast_like(to_torch(adapter.tensors[key]), own, key))
    return install(model, adapter_name, attached)


def _rows(updates: Mapping[str, Admixture]) -> dict[str, Rows]:
    """Return the selected indices and weights of every module. The logits are in the format's
    order."""
    blocks = {key: whole(update.logits).float().cpu().numpy() for key, update in updates.items()}
    first = next(iter(updates.values()))
    selection = select_top_k(blocks, first.topk)
    if selection.ties:
        warn(
            f"{selection.ties} of {len(selection.indices)} sub-vectors have equal logits at the "
            f"top-{first.topk} boundary; the lowest index was selected"
        )
    rows = rows_from_selection(selection, first.bank.num_vectors)
    ends = np.cumsum([len(block) for block in blocks.values()])
    return {
        key: Rows(rows.indices[end - len(block) : end], rows.weights[end - len(block) : end])
        for (key, block), end in zip(blocks.items(), ends.tolist(), strict=True)
    }


def _module(name: str, layer: VBLoRALinear, rank: int) -> Module:
    return Module(name, layer.in_features, layer.out_features, rank, layer.fan_in_fan_out_in_files)


def _has_digest(path: PathLike, digest: str, banks: PathLike | None) -> bool:
    try:
        load(path, digest=digest, banks=banks)
    except VbfmtError:
        return False
    return True


def _require_digest(adapter: Adapter, expected: str) -> None:
    found = digest_of(adapter)
    if found != expected:
        raise DigestError("not the adapter that was asked for", found=found, expected=expected)


def _config(adapter: Adapter) -> VBLoRAConfig:
    """Return a config for training, made from the packed config and the adapter's sizes."""
    ranks = {module.name: module.rank for module in adapter}
    return VBLoRAConfig.from_peft(
        {
            **peft_layout.implied(adapter),
            **peft_layout.config_of(adapter),
            **peft_layout.sizes(adapter, adapter.rank),
            "rank_pattern": rank_pattern_of(ranks),
            "base_model_name_or_path": adapter.base_model,
            "revision": adapter.base_revision,
        },
        layers_known=True,
    )


def _logits(adapter: Adapter, gap: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return finite logits (N, h) whose top-k softmax gives the adapter's indices and weights."""
    weights = all_weights(adapter.weights).astype(np.float64)
    selected = np.log(np.maximum(weights, _LEAST_WEIGHT))
    logits = np.repeat(selected[:, -1:] - gap, adapter.h, axis=1)
    np.put_along_axis(logits, adapter.indices.astype(np.intp), selected, axis=1)
    return logits.astype(np.float32)
