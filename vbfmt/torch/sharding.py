"""Support models whose parameters are sharded over processes.

With FSDP2, `torch.distributed.fsdp.fully_shard` may be called before `inject` or after it:

* before: FSDP does not manage the adapter's parameters, and every process holds all of them. This
  module averages their gradients over the processes, as FSDP does for its own parameters.
* after: FSDP shards the adapter's parameters too. They are gathered to compose sub-vectors and to
  save an adapter, so all processes must make these calls.

FSDP1 works if it wraps the whole model as one unit, with ``use_orig_params=True``; save within
``FullyShardedDataParallel.summon_full_params(model)``.

DeepSpeed's ZeRO-1 and ZeRO-2 do not shard parameters. Parameters that ZeRO-3 shards are gathered
like those of FSDP2.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from vbfmt.errors import ModelError, few


def is_sharded(tensor: Tensor | None) -> bool:
    """Return whether a tensor is a `DTensor`."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_distributed() -> bool:
    """Return whether a process group is initialized."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _is_sharded_by_fsdp2(root: nn.Module) -> bool:
    """Return whether `fully_shard` was called on a module of the model."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(each, fsdp.FSDPModule) for each in root.modules())


def is_partitioned(tensor: Tensor | None) -> bool:
    """Return whether DeepSpeed's ZeRO-3 shards a parameter, even if it is gathered now."""
    return hasattr(tensor, "ds_persist")


def _is_split(tensor: Tensor | None) -> bool:
    """Return whether each process holds only a part of the tensor."""
    return is_sharded(tensor) or is_partitioned(tensor)


def full_shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of the whole parameter."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def gathered(tensor: Tensor) -> Tensor:
    """Return the whole parameter, differentiably. If it is not sharded, return it as it is.

    The gradient is the mean over all processes, as with FSDP.
    """
    if is_partitioned(tensor):
        return _gathered_by_zero(tensor)
    if not is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import Partial

    sharded = cast(Any, tensor)
    mesh = sharded.device_mesh
    whole: Tensor = sharded.full_tensor(grad_placements=[Partial() for _ in range(mesh.ndim)])
    if whole.requires_grad:
        cast(Any, whole).register_hook(lambda gradient: gradient / mesh.size())
    return whole


def _gathered_by_zero(parameter: Any) -> Tensor:
    """Return the whole of a parameter that ZeRO-3 shards. DeepSpeed averages its gradient.

    The parameter is partitioned again immediately; otherwise it would still hold the old values
    after the optimizer's next step. The returned view keeps the values for the backward pass. In
    the backward pass the parameter is gathered once more, because PyTorch adds a gradient only to a
    parameter of the same shape.
    """

    def gather(*_: Tensor) -> bool:
        split: bool = parameter.shape != parameter.ds_shape
        if split:
            parameter.all_gather()
        return split

    split = gather()
    values: Tensor = parameter.view_as(parameter)
    if split and not parameter.ds_persist:
        parameter.partition()
    if values.requires_grad:
        cast(Any, values).register_hook(lambda gradient: (gather(), gradient)[1])
    return values


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all values, detached. If it is not sharded, memory is shared."""
    if getattr(tensor, "_fsdp_flattened", False):
        return tensor.detach().clone()  # FSDP1 frees the memory, even if NumPy still uses it
    return gathered(tensor).detach()


@torch.no_grad()
def put_back(tensor: Tensor, values: Tensor) -> None:
    """Write values that `whole` returned, and that were changed since, back to a sharded tensor."""
    if getattr(tensor, "_fsdp_flattened", False):
        tensor.copy_(values)
    if is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        sharded = cast(Any, tensor)
        sharded.copy_(distribute_tensor(values, sharded.device_mesh, sharded.placements))


def require_whole(matrices: Iterable[Tensor]) -> None:
    """Refuse banks and logits that FSDP1 has sharded.

    Raises:
        ModelError: the message says which settings work.
    """
    if any(matrix.ndim != 2 and not is_partitioned(matrix) for matrix in matrices):
        raise ModelError(
            "FSDP1 has sharded the adapter's parameters",
            advice="train with fully_shard (FSDP2), or wrap the model as one unit, with "
            "use_orig_params=True and no auto_wrap_policy; save within summon_full_params",
        )


def has_other_processes() -> bool:
    """Return whether other processes take part in the training and may save the same adapter."""
    return is_distributed() and torch.distributed.get_world_size() > 1


def takes_part(tensors: Iterable[Tensor], *, first: bool) -> bool:
    """Return whether this process must take part in saving. If a tensor is split, all must.

    Args:
        first: whether this process is the one that writes.
    """
    return first or any(_is_split(tensor) for tensor in tensors)


def is_writer(tensors: Iterable[Tensor]) -> bool:
    """Return whether this process must write the gathered tensors. True if no tensor is sharded."""
    if not any(_is_split(tensor) for tensor in tensors):
        return True
    return torch.distributed.get_rank() == 0


def require_local(what: str, tensors: dict[str, Tensor]) -> None:
    """Refuse an operation, such as merging, on tensors that are sharded over processes.

    Raises:
        ModelError: a tensor is sharded. The message names the first such tensors.
    """
    split = [name for name, tensor in tensors.items() if _is_split(tensor)]
    if split:
        by_zero = any(is_partitioned(tensor) for tensor in tensors.values())
        raise ModelError(
            f"cannot {what}: parameters are sharded over processes",
            part=few(split),
            advice=f"do it before {'deepspeed.initialize' if by_zero else 'fully_shard'}",
        )


def require_no_copies(tensors: Mapping[str, Tensor]) -> None:
    """Refuse to load into parameters that DeepSpeed's optimizer has copied.

    Its next step would overwrite the loaded values with those of the copies.

    Raises:
        ModelError: the optimizer has such copies. The message names the first such parameters.
    """
    copied = [
        name
        for name, tensor in tensors.items()
        if is_partitioned(tensor) or hasattr(tensor, "_hp_mapping")
    ]
    if copied:
        raise ModelError(
            "cannot load: DeepSpeed's optimizer has copies of the adapter's parameters",
            part=few(copied),
            advice="load before deepspeed.initialize, or resume with engine.load_checkpoint",
        )


def require_adaptable(model: nn.Module, layers: Iterable[str]) -> None:
    """Refuse layers whose features are split over processes (tensor parallelism).

    Raises:
        ModelError: a layer is split. The message names the first such layers.
    """
    modules = dict(model.named_modules())
    by_fsdp = _is_sharded_by_fsdp2(model)
    split = [name for name in layers if is_sharded(getattr(modules.get(name), "weight", None))]
    if split and not by_fsdp:
        raise ModelError(
            "layers that are split over processes (tensor parallelism) cannot be adapted",
            part=few(split),
            advice="load the model without tp_plan; to train with several processes, use "
            "DistributedDataParallel or fully_shard",
        )


class GradientAverage:
    """Averages gradients over the processes, for parameters that FSDP2 does not manage."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    def cover(self, root: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients of these parameters from now on, if FSDP2 shards the model."""
        new = [p for p in parameters if p.requires_grad and id(p) not in self._known]
        if not new:
            return
        self._known.update(id(parameter) for parameter in new)
        groups = list(_groups(root))
        if not groups:
            return
        for parameter in new:
            if not is_sharded(parameter):
                cast(Any, parameter).register_post_accumulate_grad_hook(_averaging(groups))


def _groups(root: nn.Module) -> Iterator[Any]:
    """Yield the process groups of the mesh over which FSDP2 shards the model, if it does."""
    if not _is_sharded_by_fsdp2(root):
        return
    for parameter in root.parameters():
        if is_sharded(parameter):
            yield from cast(Any, parameter).device_mesh.get_all_groups()
            return
    yield torch.distributed.group.WORLD  # all gathered, as during a pass: no mesh


def _averaging(groups: list[Any]) -> Any:
    def average(parameter: Tensor) -> None:
        gradient = parameter.grad
        for group in groups if gradient is not None else ():
            torch.distributed.all_reduce(gradient, group=group)
            gradient = cast(Tensor, gradient)
            gradient /= torch.distributed.get_world_size(group)

    return average
