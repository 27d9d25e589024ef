"""The adapters of a model, and which of them is active."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vbfmt._files.wrappers import without_wrappers
from vbfmt.errors import ModelError, warn
from vbfmt.torch.admixture import Admixture, LowRankUpdate
from vbfmt.torch.bank import VectorBank
from vbfmt.torch.composition import Composition
from vbfmt.torch.config import VBLoRAConfig
from vbfmt.torch.linear import VBLoRALinear
from vbfmt.torch.sharding import GradientAverage, is_distributed, require_local
from vbfmt.torch.stand_ins import StandIns

# The attributes in which DistributedDataParallel, torch.compile and FSDP1 keep the wrapped model.
_WRAPPED = ("module", "_orig_mod", "_fsdp_wrapped_module")


class AttachedAdapter(nn.Module):
    """One adapter of a model: a packed one, or a `TrainableAdapter`.

    Attributes:
        updates: layer name → what it adds to that layer's output. The layers register these.
        stand_ins: its own versions of biases and heads of the base.
        composition: its sub-vectors during a forward pass; None for a packed adapter.
    """

    composition: Composition | None = None

    def __init__(self, updates: Mapping[str, LowRankUpdate], stand_ins: StandIns) -> None:
        super().__init__()
        self.updates = updates
        self.stand_ins = stand_ins

    @property
    def bank(self) -> VectorBank | None:
        """Its vector bank, which other adapters may share; None for a packed adapter."""
        return None if self.composition is None else self.composition.bank

    def get_extra_state(self) -> Tensor:
        """Return what a state dict's tensors do not show: k (0 for a packed adapter), and 1 if the
        stand-ins are in the base's modules (else 0)."""
        k = 0 if self.composition is None else self.composition.topk
        return torch.tensor([k, int(self.stand_ins.standing)], device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Do nothing: the state was checked before anything was loaded."""


class TrainableAdapter(AttachedAdapter):
    """An adapter with logits."""

    updates: Mapping[str, Admixture]
    composition: Composition

    def __init__(
        self,
        config: VBLoRAConfig,
        bank: VectorBank,
        updates: Mapping[str, Admixture],
        stand_ins: StandIns,
    ) -> None:
        super().__init__(updates, stand_ins)
        self._config = config
        self.composition = Composition(bank, config.topk, config.selection)
        for update in updates.values():
            update.share(self.composition)

    @property
    def config(self) -> VBLoRAConfig:
        """Its config. Read-only, because k cannot change."""
        return self._config

    @property
    def bank(self) -> VectorBank:
        """Its vector bank, which other adapters may share."""
        return self.composition.bank


class VBLoRA(nn.Module):
    """All adapters of a model. It is the submodule ``model.vblora``.

    Attributes:
        adapters: name → `AttachedAdapter`.
        active: the name of the adapter whose update is applied, or None.
        has_run: whether an uncompiled forward pass has ended since the last adapter was added.
        switches: number of adapter switches so far.
        merged_names: the adapters that are merged into the base's weights.
        loading_adapter_only: whether the state dict being loaded holds an adapter without the base.
    """

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict()
        self.active: str | None = None
        self.has_run = False
        self.switches = 0
        self.merged_names: tuple[str, ...] = ()
        self.loading_adapter_only = False
        self.trained_before = frozenset(
            name for name, parameter in root.named_parameters() if parameter.requires_grad
        )
        self._root = (root,)  # in a tuple, so that it is not registered as a submodule
        self._warned = False
        self._average = GradientAverage()
        self._hooks: list[RemovableHandle] = []

    @property
    def root(self) -> nn.Module:
        """The model."""
        return self._root[0]

    @property
    def merged(self) -> bool:
        """Whether adapters are merged into the base's weights."""
        return bool(self.merged_names)

    def require_unmerged(self, advice: str = "call unmerge(model) first") -> None:
        """Check that no adapter is merged, since a change would have no effect on merged weights.

        Raises:
            ModelError: an adapter is merged.
        """
        if self.merged:
            raise ModelError("an adapter is merged into the base's weights", advice=advice)

    def adapter(self, name: str | None = None) -> AttachedAdapter:
        """Return the adapter with this name, or the active one if no name is given.

        Raises:
            ModelError: there is no such adapter, or none is active.
        """
        name = self.active if name is None else name
        if name is None or name not in self.adapters:
            raise ModelError(
                "no such adapter in the model" if name else "no adapter is active",
                found=name,
                expected=", ".join(self.adapters),
            )
        return cast(AttachedAdapter, self.adapters[name])

    def trainable(self, name: str | None = None) -> TrainableAdapter:
        """Return the adapter as `adapter` does, if it has logits.

        Raises:
            ModelError: the adapter is a packed one, or there is none of that name.
        """
        adapter = self.adapter(name)
        if not isinstance(adapter, TrainableAdapter):
            raise ModelError(
                "a packed adapter cannot be trained or saved again: it holds no logits",
                part=f"adapter {name or self.active}",
                advice="copy the file it was loaded from; to train, resume from a checkpoint "
                "(load_checkpoint), or start a new training run from the file (warm_start)",
            )
        return adapter

    def register_banks(self) -> None:
        """Register every bank with the first adapter that uses it, and with no other."""
        seen: set[int] = set()
        for adapter in cast("Iterator[AttachedAdapter]", self.adapters.values()):
            adapter._modules.pop("bank", None)
            if adapter.bank is not None and id(adapter.bank) not in seen:
                adapter._modules["bank"] = adapter.bank
                seen.add(id(adapter.bank))

    def others_with_bank_of(self, adapter: TrainableAdapter) -> list[str]:
        """Return the names of the other adapters that share an adapter's bank."""
        found = {name: self.adapter(name) for name in self.adapters}
        return [n for n, a in found.items() if a.bank is adapter.bank and a is not adapter]

    def all_layers(self) -> dict[str, VBLoRALinear]:
        """Return every adapted layer, by its name in the base model."""
        return adapted_layers(self.root)

    def layers(self, name: str | None = None) -> dict[str, VBLoRALinear]:
        """Return the layers that an adapter, by default the active one, changes, by name."""
        name = (self.active or "") if name is None else name
        return {key: layer for key, layer in self.all_layers().items() if name in layer.updates}

    def activate(self, name: str | None) -> None:
        """Make another adapter active, or none. Leave ``requires_grad`` as it is."""
        self.require_unmerged()
        for each in (self.active, name):
            if each is not None:
                stand_ins = self.adapter(each).stand_ins
                stand_ins.require_originals(self.root)
                require_local("exchange heads and biases", stand_ins.both(self.root))
        for adapter in cast("Iterator[AttachedAdapter]", self.adapters.values()):
            if adapter.composition is not None:
                adapter.composition.end()
        self.switches += 1
        if self.active is not None:
            self.adapter().stand_ins.swap(self.root)
        self.active = name
        for layer in self.all_layers().values():
            layer.active = name if name is not None and name in layer.updates else None
        if name is not None:
            self.adapter(name).stand_ins.swap(self.root)

    def parameters_of(self, name: str | None = None) -> dict[str, list[nn.Parameter]]:
        """Return an adapter's parameters by kind: ``bank``, ``logits``, ``rest`` (biases,
        heads)."""
        adapter = self.adapter(name)
        if not isinstance(adapter, TrainableAdapter):
            return {"bank": [], "logits": [], "rest": []}
        return {
            "bank": [] if adapter.bank.frozen else [adapter.bank.weight],
            "logits": [each for update in adapter.updates.values() for each in update.trained],
            "rest": adapter.stand_ins.parameters_of(self.root),
        }

    def train_only(self, name: str | None) -> None:
        """Make one adapter's parameters trainable, and freeze those of all others."""
        for other in [key for key in self.adapters if key != name] + [name] * (name is not None):
            for parameters in self.parameters_of(other).values():
                for parameter in parameters:
                    parameter.requires_grad_(other == name)

    def begin_pass(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook of the model: compose all sub-vectors of the active adapter."""
        if self.active is None:
            return
        composition = self.adapter().composition
        if composition is None:
            self._warn_that_it_does_not_train()
        elif not self.merged:
            if not torch.compiler.is_compiling() and is_distributed():
                own = self.parameters_of().values()
                self._average.cover(self.root, itertools.chain.from_iterable(own))
            composition.begin()

    def _warn_that_it_does_not_train(self) -> None:
        """Warn once if a packed adapter is active and the model seems to be trained."""
        seems_so = self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if seems_so and not self._warned:
            self._warned = True
            warn(
                f"adapter {self.active} is packed and cannot be trained: to train, call "
                f"load_checkpoint or warm_start; for inference, call model.eval()"
            )

    def end_pass(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the model: end the pass. It is also called after an error."""
        composition = None if self.active is None else self.adapter().composition
        if composition is not None:
            composition.end()
        if output is not None and not torch.compiler.is_compiling():
            self.has_run = True

    def attach(self, hooks: Iterable[RemovableHandle]) -> None:
        """Register this module and its hooks with the model.

        Args:
            hooks: other hooks of the model, to be removed with the last adapter.
        """
        self.root.vblora = self
        self._hooks = [
            self.root.register_forward_pre_hook(self.begin_pass),
            self.root.register_forward_hook(self.end_pass, always_call=True),
            *hooks,
        ]

    def detach(self) -> None:
        """Remove this module and its hooks from the model."""
        for hook in self._hooks:
            hook.remove()
        del self.root.vblora

    def forward(self, *inputs: Any) -> Any:
        """Return the input, so that this module can be a part of an `nn.Sequential`."""
        return inputs[0] if len(inputs) == 1 else inputs


def adapted_layers(root: nn.Module) -> dict[str, VBLoRALinear]:
    """Return every adapted layer of a model, by its name in the base model."""
    return {
        without_wrappers(name): layer
        for name, layer in root.named_modules()
        if isinstance(layer, VBLoRALinear)
    }


def adapters_of(model: nn.Module) -> VBLoRA:
    """Return a model's adapters. The model may be wrapped by DDP, FSDP1 or torch.compile.

    Raises:
        ModelError: the model has no adapters.
    """
    found = find_adapters(model)
    if found is None:
        raise ModelError(
            "the model has no adapter",
            found=type(model).__name__,
            advice="call inject(model, config) or a load function first",
        )
    return found


def find_adapters(model: nn.Module) -> VBLoRA | None:
    """Return a model's adapters as `adapters_of` does, or None if it has none.

    Raises:
        ModelError: `model` is not a module.
    """
    if not hasattr(model, "_modules"):
        raise ModelError(
            "not a model", found=type(model).__name__, expected="a module (torch.nn.Module)"
        )
    inner: Any = model
    while inner is not None:
        found = inner._modules.get("vblora") if isinstance(inner, nn.Module) else None
        if isinstance(found, VBLoRA):
            return found
        wrapped = (inner._modules.get(name) for name in _WRAPPED)
        inner = next((module for module in wrapped if module is not None), None)
    return None


def find_adapter(model: nn.Module, name: str) -> AttachedAdapter | None:
    """Return the adapter of a model with this name, or None if it has none."""
    adapters = find_adapters(model)
    return adapters.adapter(name) if adapters is not None and name in adapters.adapters else None


def set_adapter(model: nn.Module, adapter_name: str | None) -> None:
    """Make one adapter active and the only trainable one; with None, use the base model alone.

    This affects all threads that use the model.

    Raises:
        ModelError: there is no such adapter, one is merged, or several are named.
    """
    adapters = adapters_of(model)
    if adapter_name is not None and not isinstance(adapter_name, str):
        raise ModelError(
            "only one adapter can be active at a time",
            part="adapter_name",
            found=repr(adapter_name),
            expected="a name, or None",
            advice="the sum of several can be merged: merge(model, [name, …])",
        )
    if adapter_name is not None:
        adapters.adapter(adapter_name)
    adapters.activate(adapter_name)
    adapters.train_only(adapter_name)


@contextlib.contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Use the base model alone in the block. This affects all threads that use the model.

    If the block itself switches, injects or ejects adapters, that remains in effect after it.

    Raises:
        ModelError: an adapter is merged.
    """
    adapters = adapters_of(model)
    active = adapters.active
    if active is None:
        yield
        return
    adapters.activate(None)
    switches = adapters.switches
    try:
        yield
    finally:
        if adapters.switches == switches and active in adapters.adapters:
            adapters.activate(active)
