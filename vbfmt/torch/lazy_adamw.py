"""AdamW that keeps no state for logits that were never selected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vbfmt.errors import ModelError
from vbfmt.torch import state_checks
from vbfmt.torch.sharding import is_sharded

_OF_ENTRIES = state_checks.OF_ENTRIES


class LazyAdamW(torch.optim.AdamW):
    """AdamW, but logits change only where their gradient is not zero.

    Use it with ``param_groups(model, sparse_logits=True)``. A forward pass selects k of the h
    logits of a sub-vector; the gradient of the others is zero. AdamW still changes these by
    momentum and weight decay, and keeps two moments for every logit. This class does not change
    them, and keeps moments only for logits that were selected at least once. Each of these has its
    own step count, for the bias correction of its moments. If no gradient is zero, the result
    equals AdamW's. Otherwise training differs from AdamW's, and from the paper's.

    Groups without ``sparse=True`` are updated as AdamW does.

    Args:
        params: parameter groups.
        lr, betas, eps, weight_decay, fused: as in `torch.optim.AdamW`; `fused` applies only to the
            groups that are not sparse.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused
        )
        self._step_supports_amp_scaling = False  # GradScaler must unscale all gradients itself

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update all parameters once.

        Raises:
            ModelError: FSDP has sharded sparse logits.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sparse = [
            (parameter, group)
            for group in self.param_groups
            if group.get("sparse")
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        for parameter, _ in sparse:
            _require_local(parameter)
        gradients = [parameter.grad for parameter, _ in sparse]
        for parameter, group in sparse:
            self._update_entries(parameter, group)
            parameter.grad = None  # hidden from AdamW
        try:
            super().step()
        finally:
            for (parameter, _), gradient in zip(sparse, gradients, strict=True):
                parameter.grad = gradient
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state. Keep indices as integers: PyTorch would cast them to the parameter's
        dtype.

        Raises:
            ContentError: the state of sparse logits is damaged, or belongs to AdamW or to another
                parameter. Nothing is loaded then.
            ValueError: the parameter groups do not fit.
        """
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        own = [
            (parameter, bool(group.get("sparse")))
            for group in self.param_groups
            for parameter in group["params"]
        ]
        if len(saved) == len(own):  # otherwise torch refuses the groups
            for index, (parameter, sparse) in zip(saved, own, strict=True):
                state_checks.require(state_dict["state"].get(index) or {}, parameter, sparse, index)
        super().load_state_dict(state_dict)
        for index, (parameter, _) in zip(saved, own, strict=True):
            state = state_dict["state"].get(index, {})
            if "entries" in state:
                entries = state["entries"].to(parameter.device, copy=True)
                self.state[parameter]["entries"] = entries

    def _update_entries(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        gradient = parameter.grad.flatten()  # type: ignore[union-attr]
        entries = gradient.nonzero().squeeze(1)
        at = self._entries_at(parameter, entries)
        state, gradient = self.state[parameter], gradient[entries]
        state["step"] += 1
        beta, beta_of_squares = group["betas"]
        mean = state["mean"][at].lerp_(gradient, 1 - beta)
        square = state["square"][at].mul_(beta_of_squares)
        square.addcmul_(gradient, gradient, value=1 - beta_of_squares)
        count = state["count"][at].add_(1)
        for name, values in zip(_OF_ENTRIES, (mean, square, count), strict=True):
            state[name][at] = values
        root = (square / (1 - beta_of_squares**count)).sqrt_().add_(group["eps"])
        change = mean / (1 - beta**count) / root
        flat = parameter.view(-1)
        rate = float(group["lr"])
        kept = 1 - rate * group["weight_decay"]
        flat[entries] = flat[entries].mul_(kept).sub_(change, alpha=rate)

    def _entries_at(self, parameter: nn.Parameter, entries: Tensor) -> Tensor:
        """Return the positions of these entries in the state, after adding the entries that are
        new.

        Args:
            entries: flat indices, ascending.
        """
        state = self.state[parameter]
        if not state:
            empty = parameter.new_zeros(0)
            state.update(entries=entries.new_zeros(0), **dict.fromkeys(_OF_ENTRIES, empty))
            state["step"] = torch.tensor(0.0)  # AdamW looks for it in a loaded state
        known = state["entries"]
        new = entries[torch.isin(entries, known, assume_unique=True, invert=True)]
        if not len(new):
            return torch.searchsorted(known, entries)
        state["entries"], order = torch.cat([known, new]).sort()
        for name in _OF_ENTRIES:
            values = state[name]
            state[name] = torch.cat([values, values.new_zeros(len(new))])[order]
        return torch.searchsorted(state["entries"], entries)


def _require_local(parameter: nn.Parameter) -> None:
    if is_sharded(parameter):
        raise ModelError(
            "sparse logits cannot be sharded over processes",
            part="logits",
            found=tuple(parameter.shape),
            advice="use torch.optim.AdamW, or call fully_shard before inject",
        )
