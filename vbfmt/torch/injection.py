"""Add adapters to a model, in place, and remove them."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from typing import Any, cast

from torch import Tensor, nn

from vbfmt.errors import ConfigError, ModelError, warn
from vbfmt.torch.adapters import (
    AttachedAdapter,
    TrainableAdapter,
    VBLoRA,
    adapters_of,
    disabled,
    find_adapters,
)
from vbfmt.torch.admixture import Admixture
from vbfmt.torch.bank import VectorBank, require_vector_bank
from vbfmt.torch.config import VBLoRAConfig, require_config
from vbfmt.torch.fast_path import disable_fast_path, keep_batches_padded
from vbfmt.torch.linear import VBLoRALinear, features_of
from vbfmt.torch.plan import Plan, resolve
from vbfmt.torch.preconditions import require_can_add
from vbfmt.torch.pretrained import adopt, release
from vbfmt.torch.stand_ins import StandIns
from vbfmt.torch.state_dict import order_state_dicts
from vbfmt.torch.training_warnings import warn_of_shared_layers
from vbfmt.torch.wrapped import real_name, submodule


def inject(
    model: nn.Module,
    config: VBLoRAConfig,
    *,
    adapter_name: str = "default",
    bank: VectorBank | None = None,
) -> VBLoRA:
    """Add a new adapter to a model, in place, and make it the active one.

    Each target layer is wrapped in a `VBLoRALinear`, and the base is frozen. The factors of all
    layers are composed once per call of `model`, so call the model itself (or its wrapper). If you
    call a submodule instead, each layer composes its own factors.

    The logits of a layer that a forward pass does not use get a gradient of zeros, where PEFT has
    None. So an optimizer still applies momentum and weight decay to them. Second derivatives
    (``create_graph=True``) are supported on CPUs only: on other devices, PyTorch's `embedding_bag`
    has none. `nn.DataParallel` works, but each replica of a layer composes its own factors; prefer
    DistributedDataParallel.

    Afterwards, ``save_pretrained`` of a transformers model writes the active adapter, as
    `save_checkpoint` does; so do the Trainer's checkpoints. To save the base, call `eject` first.

    Args:
        adapter_name: letters, digits, ``_`` and ``-``.
        bank: a bank with the config's h and b, which several adapters may share; by default, a new
            one is created. See `VectorBank.from_packed`.

    Returns:
        The model's adapters, ``model.vblora``.

    Warns:
        VbfmtWarning: entries of the config's `target_modules` or `exclude_modules` match no module,
            or entries of its `rank_pattern` match no adapted layer. As in PEFT, this is not an
            error, so that one list can be used for several kinds of models.

    Raises:
        ModelError: no layer is a target, a target is not a linear layer, or the name is taken.
        ConfigError: b does not divide a target's features, the bank has other sizes, or `config` or
            `bank` has a wrong type.
    """
    require_config(config)
    require_can_add(model, adapter_name)
    plan = resolve(model, config)
    adapter = build(model, plan, bank=bank)
    for sentence in plan.warnings:
        warn(sentence)
    return install(model, adapter_name, adapter)


def build(model: nn.Module, plan: Plan, *, bank: VectorBank | None = None) -> TrainableAdapter:
    """Return the adapter that a plan describes. The model does not change.

    Raises:
        ConfigError: `bank` is not a bank, or has other sizes than the config.
    """
    config = plan.config
    if bank is None:
        first = next(iter(plan.layers.values()))
        bank = VectorBank(
            config.num_vectors,
            config.vector_length,
            init_bound=config.init_vector_bank_bound,
            device=cast(Tensor, first.weight).device,
        )
    _require_fitting(bank, config)
    with disabled(model) if find_adapters(model) else nullcontext():
        stand_ins = StandIns.trainable(model, plan.tensors)
    updates = {
        name: Admixture(
            *features_of(layer),
            bank,
            rank=plan.ranks[name],
            topk=config.topk,
            dropout=config.vblora_dropout,
            init_logits_std=config.init_logits_std,
            device=cast(Tensor, layer.weight).device,
        )
        for name, layer in plan.layers.items()
    }
    return TrainableAdapter(config, bank, updates, stand_ins)


def _require_fitting(bank: VectorBank, config: VBLoRAConfig) -> None:
    """Raise ConfigError if `bank` is not a bank or has other sizes than the config."""
    require_vector_bank(bank)
    if (bank.num_vectors, bank.vector_length) != (config.num_vectors, config.vector_length):
        raise ConfigError(
            "the bank has other sizes than the config",
            found=f"h = {bank.num_vectors}, b = {bank.vector_length}",
            expected=f"h = {config.num_vectors}, b = {config.vector_length}",
        )


def install(model: nn.Module, name: str, adapter: AttachedAdapter) -> VBLoRA:
    """Add a finished adapter to a model and make it the active one.

    Args:
        name: an existing adapter with this name is replaced.
    """
    adapters = find_adapters(model)
    if adapters is None:
        adapters = VBLoRA(model)
        model.requires_grad_(False)
        adapters.attach([*order_state_dicts(model), *keep_batches_padded(model)])
        adopt(model)
    adapters.activate(None)
    if name in adapters.adapters:
        _remove(adapters, name, keep=adapter.updates)
    adapters.adapters[name] = adapter
    adapters.has_run = False
    adapters.register_banks()
    for key, update in adapter.updates.items():
        layer = _wrapped(model, key)
        layer.updates[name] = update.train(layer.training)
    adapters.train(model.training)
    adapters.activate(name)
    adapters.train_only(name)
    warn_of_shared_layers(adapters, name)
    return adapters


def eject(model: nn.Module, adapter_name: str | None = None) -> None:
    """Remove an adapter from the model, or all of them if no name is given.

    After the last one, the model has its original layers, weights and ``requires_grad`` again.

    Raises:
        ModelError: there is no such adapter, or one is merged.
    """
    adapters = adapters_of(model)
    leaving = list(adapters.adapters) if adapter_name is None else [adapter_name]
    for each in leaving:
        adapters.adapter(each)
    if set(leaving) & set(adapters.merged_names):
        adapters.require_unmerged()
    if adapters.active in leaving:
        adapters.activate(None)
    for each in leaving:
        _remove(adapters, each)
    if not adapters.adapters:
        adapters.detach()
        release(adapters.root)
        for key, parameter in adapters.root.named_parameters():
            parameter.requires_grad_(key in adapters.trained_before)


def _remove(adapters: VBLoRA, name: str, keep: Collection[str] = ()) -> None:
    """Remove an inactive adapter, and unwrap the layers that no other adapter changes.

    Args:
        keep: layers to leave wrapped.
    """
    for key, layer in adapters.layers(name).items():
        del layer.updates[name]
        if not layer.updates and key not in keep:
            _replace(adapters.root, key, layer.base_layer)
    del adapters.adapters[name]
    adapters.register_banks()


def _wrapped(root: nn.Module, name: str) -> VBLoRALinear:
    """Return the adapted layer of that name, after wrapping the base's layer if necessary."""
    layer = submodule(root, name)
    if isinstance(layer, VBLoRALinear):
        return layer
    wrapper = VBLoRALinear(layer).train(layer.training)
    wrapper.name = name
    parent = _replace(root, name, wrapper)
    if isinstance(parent, nn.TransformerEncoderLayer):
        disable_fast_path(wrapper)
    return wrapper


def _replace(root: nn.Module, name: str, module: nn.Module) -> nn.Module:
    path, _, leaf = real_name(root, name).rpartition(".")
    parent = root.get_submodule(path)
    parent._modules[leaf] = module
    if leaf == "_orig_mod":
        _renew_compiled(parent)
    return parent


def _renew_compiled(wrapper: Any) -> None:
    """Make torch.compile's wrapper of a single layer call the layer that it contains now.

    Otherwise it would keep calling the layer that it was created with.
    """
    if not hasattr(wrapper, "_initialize"):
        raise ModelError(
            "a layer that this PyTorch has compiled cannot be replaced",
            advice="compile it after inject, or compile the whole model",
        )
    wrapper._initialize()
