"""The VB-LoRA layer: a frozen linear layer and the updates that adapters add to its output."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from math import gcd
from typing import Any, cast

import torch
from torch import Tensor, nn

from vbfmt.errors import ConfigError, ModelError
from vbfmt.torch.admixture import Admixture, LowRankUpdate
from vbfmt.torch.bank import VectorBank, require_vector_bank
from vbfmt.torch.config import COUNT, is_count, require_setting
from vbfmt.torch.sharding import full_shape

_OTHER_STORAGE = ("torch.", "torchao.", "bitsandbytes.", "transformers.integrations.")


class VBLoRALinear(nn.Module):
    """W·x + bias + B·(A·x), with A and B composed from the bank (paper, Algorithm 1; no scaling).

    The base layer is a `torch.nn.Linear` or transformers' ``Conv1D``. Its parameters are frozen.

    Args:
        base_layer: the layer to adapt.
        bank: for use without `inject`: add an update named ``default`` that uses this bank. The
            bank is not registered here; register it once in your own model.
        r, topk, vblora_dropout, init_logits_std: settings of that update.

    Attributes:
        base_layer: the original layer.
        updates: one `LowRankUpdate` per adapter that changes this layer.
        active: name of the update that is added to the output; None for no update.
        name: its name in the model, for messages.

    Raises:
        ModelError: the layer cannot be adapted; or, in a forward pass, its output is not a tensor
            of the right shape.
        ConfigError: b does not divide its features, k > h, r is not given, or `bank` is not a
            `VectorBank`.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        bank: VectorBank | None = None,
        *,
        r: int = 4,
        topk: int = 2,
        vblora_dropout: float = 0.0,
        init_logits_std: float = 0.1,
    ) -> None:
        super().__init__()
        in_features, out_features = features_of(base_layer)
        self.in_features, self.out_features = in_features, out_features
        self.base_layer = base_layer.requires_grad_(False)
        self.updates = nn.ModuleDict()
        self.active: str | None = None
        self.before_merge: tuple[nn.Parameter] | None = None  # in a tuple, so not registered
        self.name = ""
        self._called = [False]  # a list, which nn.DataParallel's copies of the layer share
        if bank is not None:
            require_vector_bank(bank)
            require_divisible("the layer", in_features, out_features, bank.vector_length)
            require_setting(is_count(r), "r", r, COUNT)
            fits = is_count(topk) and topk <= bank.num_vectors
            require_setting(fits, "topk", topk, f"1 to {bank.num_vectors} (h)")
            self.updates["default"] = Admixture(
                in_features,
                out_features,
                bank,
                rank=r,
                topk=topk,
                dropout=vblora_dropout,
                init_logits_std=init_logits_std,
                device=self.weight.device,
            )
            self.active = "default"

    @property
    def weight(self) -> Tensor:
        """The base layer's weight. Some models read its dtype."""
        return cast(Tensor, self.base_layer.weight)

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return cast("Tensor | None", self.base_layer.bias)

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the base layer stores its weight as (in, out)."""
        return is_conv1d(self.base_layer)

    @property
    def fan_in_fan_out_in_files(self) -> bool:
        """Whether the model's files store the weight as (in, out): a quantized layer may have been
        made from a Conv1D."""
        source = getattr(self.base_layer, "source_cls", None)  # transformers' bitsandbytes.py
        return self.fan_in_fan_out or getattr(source, "__name__", "") == "Conv1D"

    @property
    def called(self) -> bool:
        """Whether a model that is not compiled has called the layer."""
        return self._called[0]

    def update(self) -> LowRankUpdate | None:
        """The update that is added to the output now; None if there is none or it is merged."""
        if self.active is None or self.before_merge is not None:
            return None
        modules: dict[str, Any] = self._modules  # attributes of a module take longer
        update: LowRankUpdate = modules["updates"]._modules[self.active]
        return update

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (…, out_features) for x (…, in_features), in the base layer's dtype."""
        update = self.update()
        if not torch.compiler.is_compiling():
            self._called[0] = True
            if isinstance(update, Admixture):
                both = update.with_linear(x, self._modules["base_layer"])
                if both is not None:
                    return both
        result: Tensor = self.base_layer(x)
        if not isinstance(result, Tensor) or result.size(-1) != self.out_features:
            raise ModelError(
                "VB-LoRA cannot add to the output of this layer",
                part=self.name or None,
                found=type(self.base_layer).__name__,
                expected=f"one that returns a tensor (…, {self.out_features})",
                advice="leave it out with exclude_modules",
            )
        return result if update is None else cast(Tensor, update(x, result))


def is_conv1d(layer: nn.Module) -> bool:
    """Return whether a layer is transformers' Conv1D, without importing transformers."""
    pytorch_utils = sys.modules.get("transformers.pytorch_utils")
    return pytorch_utils is not None and isinstance(layer, pytorch_utils.Conv1D)


def is_adaptable(layer: nn.Module) -> bool:
    """Return whether a layer is linear and its model calls its forward."""
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False  # nn.MultiheadAttention uses its weight and never calls it
    return isinstance(layer, nn.Linear) or is_conv1d(layer)


def returns_plainly(layer: nn.Module) -> bool:
    """Return whether a layer's output is that of a linear layer.

    A subclass that overrides `forward` may return anything, as routers do. Known classes that only
    store their weight differently are accepted.
    """
    kind = type(layer)
    if is_conv1d(layer) or kind.forward is nn.Linear.forward:
        return True
    return kind.__module__.startswith(_OTHER_STORAGE)


def features_of(layer: nn.Module) -> tuple[int, int]:
    """Return a layer's in_features and out_features.

    Raises:
        ModelError: the layer cannot be adapted.
    """
    if not is_adaptable(layer):
        raise ModelError(
            "not a layer that VB-LoRA can adapt",
            found=type(layer).__name__,
            expected="torch.nn.Linear or transformers' Conv1D, called by its model",
        )
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    in_features, out_features = full_shape(cast(Tensor, layer.weight))
    return in_features, out_features


def require_divisible(name: str, in_features: int, out_features: int, b: int) -> None:
    """Check that the vector length divides a layer's features.

    Raises:
        ConfigError: the vector length does not divide them.
    """
    if in_features % b or out_features % b:
        raise ConfigError(
            "the vector length does not divide the layer's features",
            part=name,
            found=f"b = {b}, {in_features} → {out_features}",
            expected=f"a divisor of {gcd(in_features, out_features)}",
        )


def called_elsewhere(root: nn.Module, layers: Mapping[str, VBLoRALinear]) -> dict[str, str]:
    """Return the layers whose base layer is also in the model by itself.

    Returns:
        The layer's name → another name of its base layer.
    """
    names = {id(layer.base_layer): name for name, layer in layers.items()}
    return {
        names[id(child)]: f"{path}.{leaf}" if path else leaf
        for path, parent in root.named_modules()
        if not isinstance(parent, VBLoRALinear)
        for leaf, child in parent._modules.items()
        if id(child) in names
    }
