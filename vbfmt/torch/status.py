"""Report the trainable parameters of a model, and the status of each adapted layer."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import cast

from torch import nn

from vbfmt.torch.adapters import TrainableAdapter, adapters_of
from vbfmt.torch.admixture import Admixture, LowRankUpdate
from vbfmt.torch.linear import VBLoRALinear
from vbfmt.torch.sharding import full_shape


@dataclass(frozen=True)
class LayerStatus:
    """The status of one adapted layer.

    Attributes:
        name: name in the base model.
        module_type: the class of the base layer.
        in_features, out_features: sizes of the base layer.
        ranks: adapter → rank.
        active_adapter: the adapter whose update is added to the output, if any.
        merged: whether an adapter is merged into the weight.
        called: whether the model has ever called the layer.
        trains: adapter → whether its logits require a gradient.
        devices: adapter → the device of its parameters.
    """

    name: str
    module_type: str
    in_features: int
    out_features: int
    ranks: dict[str, int]
    active_adapter: str | None
    merged: bool
    called: bool
    trains: dict[str, bool]
    devices: dict[str, str]


def layer_status(model: nn.Module) -> list[LayerStatus]:
    """Return the status of every adapted layer, in the model's order.

    Raises:
        ModelError: the model has no adapter.
    """
    layers = adapters_of(model).all_layers()
    return [_status(name, layer) for name, layer in layers.items()]


def _status(name: str, layer: VBLoRALinear) -> LayerStatus:
    updates = {key: cast(LowRankUpdate, update) for key, update in layer.updates.items()}
    factors = {
        key: update.logits if isinstance(update, Admixture) else update.factors()[0]
        for key, update in updates.items()
    }
    return LayerStatus(
        name=name,
        module_type=type(layer.base_layer).__name__,
        in_features=layer.in_features,
        out_features=layer.out_features,
        ranks={
            key: update.rank if isinstance(update, Admixture) else factors[key].shape[0]
            for key, update in updates.items()
        },
        active_adapter=layer.active,
        merged=layer.before_merge is not None,
        called=layer.called,
        trains={key: tensor.requires_grad for key, tensor in factors.items()},
        devices={key: str(tensor.device) for key, tensor in factors.items()},
    )


def num_trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of trainable parameters and of all parameters, adapters included.

    A sharded parameter is counted in its full size, and a 4-bit weight as two numbers per byte.
    """
    trained = total = 0
    for parameter in model.parameters():
        count = _count(parameter)
        total += count
        trained += count if parameter.requires_grad else 0
    return trained, total


def _count(parameter: nn.Parameter) -> int:
    if hasattr(parameter, "quant_state") and hasattr(parameter, "quant_storage"):
        return 2 * parameter.numel() * parameter.element_size()  # bitsandbytes' Params4bit
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # DeepSpeed ZeRO-3


def num_stored_parameters(model: nn.Module, adapter_name: str | None = None) -> int:
    """Return the size of an adapter's packed bank, indices, weights, heads and biases, in 4-byte
    numbers.

    The paper counts in this way (Sec. 3.4). The result is rounded up.

    Args:
        adapter_name: a trainable adapter; the active one if not given.

    Raises:
        ModelError: there is no such adapter, or it is a packed one.
    """
    adapters = adapters_of(model)
    adapter = adapters.trainable(adapter_name)
    k, h = adapter.composition.topk, adapter.bank.num_vectors
    rows = sum(full_shape(update.logits)[0] for update in adapter.updates.values())
    index_bytes = 1 if h <= 256 else 2
    others = sum(
        prod(full_shape(t)) * t.element_size()
        for t in adapter.stand_ins.tensors(adapters.root).values()
    )
    bank = 4 * prod(full_shape(adapter.bank.weight))
    size = bank + rows * (k * index_bytes + 4 * (k - 1)) + others
    return -(-size // 4)


def print_trainable_parameters(model: nn.Module) -> None:
    """Print the number of trainable parameters, and how many a packed file stores."""
    trained, total = num_trainable_parameters(model)
    line = f"trainable params: {trained:,} || all params: {total:,} || trainable%: "
    line += f"{100 * trained / max(total, 1):.4f}"
    adapters = adapters_of(model)
    if adapters.active is not None and isinstance(adapters.adapter(), TrainableAdapter):
        line += f" || stored: {num_stored_parameters(model):,}"
    print(line)
