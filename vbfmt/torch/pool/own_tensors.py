"""Apply an adapter's own biases and heads, only to samples with that adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from vbfmt.adapter import Adapter
from vbfmt.errors import ModelError
from vbfmt.torch.linear import is_adaptable, is_conv1d, returns_plainly
from vbfmt.torch.matching import require_tensors
from vbfmt.torch.stand_ins import owner_of
from vbfmt.torch.tensors import cast_like, to_torch


class Own(NamedTuple):
    """The samples' own weights and biases in one module.

    Attributes:
        samples: positions of the samples whose adapter has its own weight, (M,) int64; None if no
            adapter has one.
        weights: these weights, (M, in_features, out_features).
        bias: what to add to the base's bias, (R, out_features) float32 for R samples; None if no
            adapter has its own bias.
    """

    samples: Tensor | None
    weights: Tensor | None
    bias: Tensor | None


@dataclass
class OwnTensors:
    """One adapter's own tensors, on the device.

    Attributes:
        weights: module name → weight (in_features, out_features), in the base's dtype.
        biases: module name → bias (out_features,) float32.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        held = [*self.weights.values(), *self.biases.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


def may_differ_by_sample(module: nn.Module) -> bool:
    """Return whether a module's tensors may differ between samples.

    The module must be a linear layer, or a LayerNorm, whose bias is added last.
    """
    if isinstance(module, nn.LayerNorm):
        return type(module).forward is nn.LayerNorm.forward
    return is_adaptable(module)


def own_tensors(adapter: Adapter, model: nn.Module) -> OwnTensors:
    """Return an adapter's own biases and heads, on the device of the model.

    Raises:
        ModelError: the model has no such tensor, or it cannot differ between the samples of a
            batch.
    """
    require_tensors(model, adapter)
    own = OwnTensors()
    for name, tensor in adapter.tensors.items():
        path = name.rpartition(".")[0]
        module, leaf = owner_of(model, name)
        values = cast_like(to_torch(tensor), getattr(module, leaf), name)
        if leaf == "bias" and _bias_is_plain(module):
            # Rounded to the base's dtype first, as in a merged model.
            own.biases[path] = values.float()
        elif leaf == "weight" and _weight_is_plain(module):
            own.weights[path] = (values if is_conv1d(module) else values.t()).contiguous()
        else:
            raise ModelError(
                "the adapter has a tensor that cannot differ between the samples of a batch",
                part=name,
                found=type(module).__name__,
                expected="a bias or a weight of a linear layer, or a bias of a LayerNorm",
                advice="serve this adapter with load_packed, or train without it",
            )
    return own


def staged(
    name: str, module: nn.Module, owners: Sequence[OwnTensors | None], device: torch.device
) -> Own:
    """Return the samples' own weights and biases in a module. At least one sample has some."""
    with_weight = [at for at, own in enumerate(owners) if own and name in own.weights]
    biases = [own.biases.get(name) if own else None for own in owners]
    samples = weights = bias = None
    if with_weight:
        samples = torch.tensor(with_weight, device=device)
        found = [cast(OwnTensors, owners[at]).weights[name] for at in with_weight]
        weights = cast_like(torch.stack(found), cast(Tensor, module.weight), f"{name}.weight")
    if any(each is not None for each in biases):
        base = cast(Tensor, module.bias).detach().float()
        bias = torch.stack([base if each is None else each for each in biases]) - base
    return Own(samples, weights, bias)


def with_own_weights(x: Tensor, own: Own, base_bias: Tensor | None, result: Tensor) -> Tensor:
    """Return the result, (R, T, out_features), with the samples' own weights applied."""
    if own.samples is None or own.weights is None:
        return result
    theirs = torch.bmm(x.index_select(0, own.samples), own.weights)
    if base_bias is not None:
        theirs = theirs + base_bias
    return result.index_copy(0, own.samples, theirs.to(result.dtype))


def with_own_biases(own: Own, result: Tensor) -> Tensor:
    """Return the result, (R, T, out_features), with each sample's own bias instead of the
    base's."""
    if own.bias is None:
        return result
    return (result + own.bias[:, None]).to(result.dtype)


def _bias_is_plain(module: nn.Module) -> bool:
    """Return whether the module adds its bias last."""
    plain = returns_plainly(module) if is_adaptable(module) else True
    return plain and may_differ_by_sample(module)


def _weight_is_plain(module: nn.Module) -> bool:
    """Return whether the module's output is only its weight times the input."""
    if not (is_adaptable(module) and returns_plainly(module)):
        return False
    kind, weight = type(module), cast(Tensor, module.weight)
    own_forward = kind.forward is not nn.Linear.forward and not is_conv1d(module)
    return weight.is_floating_point() and not own_forward
