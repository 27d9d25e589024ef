"""Adapters of models whose parameters are sharded over processes.

FSDP2 (`torch.distributed.fsdp.fully_shard`), before `inject` or after it:

* before: the adapter's parameters are not FSDP's, and stay whole in every process. Their gradients
  are averaged here, as FSDP averages those of its own.
* after: FSDP shards them with the modules that they are in. They are gathered where sub-vectors
  are composed, and where an adapter is saved; every process takes part in that.

FSDP1 works as one unit of the whole model with ``use_orig_params=True``; save within
``FullyShardedDataParallel.summon_full_params(model)``.

DeepSpeed: ZeRO-1 and ZeRO-2 leave parameters whole. Those that ZeRO-3 splits are gathered where
sub-vectors are composed, and where an adapter is saved, as with `fully_shard`.
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
    """Return whether other processes train the same model."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _is_sharded_by_fsdp2(root: nn.Module) -> bool:
    """Return whether `fully_shard` was called on a module of the model."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(each, fsdp.FSDPModule) for each in root.modules())


def is_partitioned(tensor: Tensor | None) -> bool:
    """Return whether DeepSpeed's ZeRO-3 splits a parameter over processes, gathered or not."""
    return hasattr(tensor, "ds_persist")


def _is_split(tensor: Tensor | None) -> bool:
    """Return whether processes hold parts of a tensor."""
    return is_sharded(tensor) or is_partitioned(tensor)


def full_shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape that a parameter has whole."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def gathered(tensor: Tensor) -> Tensor:
    """Return a parameter whole, differentiably: itself if it is not sharded.

    The gradient is the mean over all processes, as FSDP has it.
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
    """Return a parameter that ZeRO-3 splits, whole. DeepSpeed averages its gradient.

    The parameter is split again at once, or its values would be old ones after the next step; the
    view keeps them for the backward pass. PyTorch adds a gradient to whole parameters only.
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
    """Return a tensor's values whole, detached; memory is shared if it is not sharded."""
    if getattr(tensor, "_fsdp_flattened", False):
        return tensor.detach().clone()  # FSDP1 frees the memory, which NumPy would hold
    return gathered(tensor).detach()


@torch.no_grad()
def put_back(tensor: Tensor, values: Tensor) -> None:
    """Write values that `whole` returned, and that were changed since, to a sharded tensor."""
    if getattr(tensor, "_fsdp_flattened", False):
        tensor.copy_(values)
    if is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        sharded = cast(Any, tensor)
        sharded.copy_(distribute_tensor(values, sharded.device_mesh, sharded.placements))


def require_whole(matrices: Iterable[Tensor]) -> None:
    """Refuse banks and logits of which FSDP1 shows a part.

    Raises:
        ModelError: says what works.
    """
    if any(matrix.ndim != 2 and not is_partitioned(matrix) for matrix in matrices):
        raise ModelError(
            "FSDP1 has sharded the adapter's parameters",
            advice="train with fully_shard (FSDP2), or wrap the model as one unit, with "
            "use_orig_params=True and no auto_wrap_policy; save within summon_full_params",
        )


def is_writer(tensors: Iterable[Tensor]) -> bool:
    """Return whether this process writes the gathered tensors; True if nothing is split."""
    if not any(_is_split(tensor) for tensor in tensors):
        return True
    return torch.distributed.get_rank() == 0


def require_local(what: str, tensors: dict[str, Tensor]) -> None:
    """Refuse to exchange, load or add to tensors that processes hold parts of.

    Raises:
        ModelError: names the first.
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
    """Refuse to load into parameters of which DeepSpeed's optimizer has copies: its next step would
    bring the copies' values back.

    Raises:
        ModelError: names the first.
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
    """Refuse layers that hold a part of their features only: tensor parallelism.

    Raises:
        ModelError: names the first.
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
    """Averages, over the processes, the gradients of parameters that FSDP2 does not know."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    def cover(self, root: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        """Have every gradient of these parameters averaged, if the model is sharded by FSDP2."""
        if not is_distributed():
            return
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
    """The process groups of the mesh that FSDP2 shards the model over; none if it does not."""
    if not _is_sharded_by_fsdp2(root):
        return
    for parameter in root.parameters():
        if is_sharded(parameter):
            yield from cast(Any, parameter).device_mesh.get_all_groups()
            return
    yield torch.distributed.group.WORLD  # all of them are whole during a pass


def _averaging(groups: list[Any]) -> Any:
    def average(parameter: Tensor) -> None:
        gradient = parameter.grad
        for group in groups if gradient is not None else ():
            torch.distributed.all_reduce(gradient, group=group)
            gradient = cast(Tensor, gradient)
            gradient /= torch.distributed.get_world_size(group)

    return average
