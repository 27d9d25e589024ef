"""Get and set a trainable adapter's tensors in memory, under the keys of PEFT's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vbfmt._files.peft_layout import BANK, key_of_logits, key_of_tensor
from vbfmt.errors import ModelError, few
from vbfmt.torch.adapters import TrainableAdapter, adapters_of, find_adapters
from vbfmt.torch.admixture import Admixture
from vbfmt.torch.checkpoint_file import require_finite
from vbfmt.torch.sharding import put_back, require_no_copies, require_whole, whole
from vbfmt.torch.tensors import cast_like


def is_adapter_state(state: Mapping[str, object]) -> bool:
    """Return whether the keys are those of `get_adapter_state_dict`: an adapter without its
    base."""
    return BANK in state and all(key.startswith("base_model.") for key in state)


def get_adapter_state_dict(model: nn.Module, adapter_name: str | None = None) -> dict[str, Tensor]:
    """Return the tensors that `save_checkpoint` writes: bank, logits, biases and heads.

    Args:
        adapter_name: the active adapter if not given.

    Returns:
        PEFT's key → detached tensor, which shares memory with the adapter's parameter.

    Raises:
        ModelError: there is no such adapter, or it is a packed one.
    """
    adapters = adapters_of(model)
    return tensors_of(adapters.root, adapters.trainable(adapter_name))


def set_adapter_state_dict(
    model: nn.Module, tensors: Mapping[str, Tensor], adapter_name: str | None = None
) -> None:
    """Copy the tensors of `get_adapter_state_dict` into an adapter of the model.

    Args:
        tensors: exactly the adapter's tensors, under PEFT's keys.
        adapter_name: the active adapter if not given.

    Raises:
        ModelError: there is no such adapter, its tensors are not those given, an adapter is merged,
            or a frozen or shared bank would change. Nothing is copied then.
        ContentError: a logit or a bank value is NaN or infinite.
    """
    adapters = adapters_of(model)
    adapters.require_unmerged()
    adapter = adapters.trainable(adapter_name)
    require_finite(tensors)
    fill(adapters.root, adapter, tensors)


def tensors_of(
    root: nn.Module, adapter: TrainableAdapter, values: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the adapter's tensors under PEFT's keys.

    They are views of its parameters, or of gathered copies if the parameters are sharded.

    Args:
        values: parameters that are gathered already, by their names in the model.
    """
    return _Tensors(root, adapter, values or {}).by_key


def fill(root: nn.Module, adapter: TrainableAdapter, tensors: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's values into an adapter that has exactly these tensors.

    Raises:
        ModelError: the adapter's tensors are not those given, or their dtype cannot represent the
            values; its logits are parametrized; a frozen or shared bank would change; or DeepSpeed
            trains it already. Nothing is changed then.
    """
    parametrized = [key for key, update in adapter.updates.items() if update.parametrized]
    if parametrized:
        raise ModelError(
            "logits that a parametrization computes cannot be loaded",
            part=few(parametrized),
            advice="load first, and register the parametrization afterwards",
        )
    logits = {key: update.logits for key, update in adapter.updates.items()}
    require_no_copies({BANK: adapter.bank.weight, **logits, **adapter.stand_ins.tensors(root)})
    held = _Tensors(root, adapter, {})
    own = dict(held.by_key)
    _require_same(own, tensors)
    given = {key: cast_like(tensors[key], tensor, key) for key, tensor in own.items()}
    if torch.equal(own[BANK], given[BANK]):
        del own[BANK]  # other adapters may use the bank: write to it only if needed
    else:
        _require_own_bank(root, adapter)
    for key, tensor in own.items():
        tensor.copy_(given[key])
    for parameter, values in held.sources:
        put_back(parameter, values)
    adapter.composition.end()  # an interrupted pass would use the old values


class _Tensors:
    """An adapter's tensors under PEFT's keys.

    Attributes:
        by_key: PEFT's key → tensor, detached.
        sources: pairs of the adapter's own tensor and its full values; `by_key` has views of these.
    """

    def __init__(
        self, root: nn.Module, adapter: TrainableAdapter, values: Mapping[str, Tensor]
    ) -> None:
        names = {id(p): name for name, p in root.named_parameters()} if values else {}
        self._values = {at: values[name] for at, name in names.items() if name in values}
        bank, updates = adapter.bank.weight, adapter.updates
        require_whole([bank, *(update.logits for update in updates.values())])
        self.sources: list[tuple[Tensor, Tensor]] = []
        self.by_key = {BANK: self._whole(bank)}
        for key, update in updates.items():
            for factor, logits in _as_peft(update, self._whole(update.logits)).items():
                self.by_key[key_of_logits(key, factor)] = logits
        for key, tensor in adapter.stand_ins.tensors(root).items():
            self.by_key[key_of_tensor(key, updates)] = self._whole(tensor)

    def _whole(self, tensor: Tensor) -> Tensor:
        values = self._values.get(id(tensor))
        values = whole(tensor) if values is None else values.detach()
        self.sources.append((tensor, values))
        return values


def _require_own_bank(root: nn.Module, adapter: TrainableAdapter) -> None:
    """Refuse to overwrite a bank that is frozen or that other adapters share."""
    adapters = find_adapters(root)
    others = [] if adapters is None else adapters.others_with_bank_of(adapter)
    if adapter.bank.frozen or others:
        raise ModelError(
            "the checkpoint's bank differs from the adapter's, which must not change",
            part=f"shared with adapter {', '.join(others)}" if others else "a frozen bank",
            advice="load it under a new name, with its own bank",
        )


def _require_same(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Check that the checkpoint has exactly the tensors of the adapter in the model."""
    other = [key for key in {**own, **given} if (key in own) != (key in given)]
    if other:
        raise ModelError(
            "the adapter belongs to another model or config: some tensors are missing on one side",
            found=few(other),
        )
    for key, tensor in own.items():
        if tensor.shape != given[key].shape:
            raise ModelError(
                "the adapter belongs to another model or config: shapes differ",
                part=key,
                found=tuple(given[key].shape),
                expected=tuple(tensor.shape),
            )


def _as_peft(update: Admixture, logits: Tensor) -> dict[str, Tensor]:
    """Return the logits of A (r, in/b, h) and of B (out/b, r, h), as views."""
    rows_a, rows_b = torch.split(logits, update.rows)
    h = rows_a.shape[1]
    return {
        "A": rows_a.view(update.rank, -1, h),
        "B": rows_b.view(update.rank, -1, h).transpose(0, 1),
    }
