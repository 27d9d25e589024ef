"""`AdapterPool`: thousands of packed adapters beside one model, mixed in its batches."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from vbfmt.adapter import Adapter
from vbfmt.errors import ConfigError, ModelError, VbfmtError, few, warn
from vbfmt.packed import load
from vbfmt.torch.adapters import find_adapters
from vbfmt.torch.config import is_count
from vbfmt.torch.pool.batch import Batch, Staging
from vbfmt.torch.pool.intake import Intake
from vbfmt.torch.pool.layers import LayerHook
from vbfmt.torch.pool.own_tensors import may_differ_by_sample
from vbfmt.torch.pool.requirements import (
    BASE,
    device_of,
    forget_compiled,
    pools,
    require_bare,
    require_no_checkpointing,
    require_settings,
    stream_of,
    wanted,
)
from vbfmt.torch.pool.residents import Resident, Residents
from vbfmt.torch.pool.running import run
from vbfmt.torch.preconditions import require_in_memory
from vbfmt.torch.targets import base_modules

PathLike = str | os.PathLike[str]

_keys = itertools.count(1)


class AdapterPool:
    """Packed adapters that a model serves together: every sample of a batch names its own.

    >>> pool = AdapterPool(model, limit=10 * 2**30)
    >>> pool.put("ada", "ada.vblora")
    >>> pool.put("bob", "bob.vblora")
    >>> with pool.forward(["ada", None, "bob"]):
    ...     logits = model(**three_samples).logits
    >>> pool.generate(**three_samples, adapter_names=["ada", None, "bob"])

    On the device are the adapters' rows as they are packed, one copy of each bank, and the
    adapters' own biases and heads. Factors are composed while a layer computes, and not kept.
    Adapters come and go while the model runs, also from other threads. A model that runs without
    `forward` or `generate` is the base alone.

    Adapters may differ in rank, k, bank, and in the layers that they change; they are computed
    together where that costs little. Every layer must see the samples as its input's first
    dimension, or all positions of all samples in one; routed experts are refused in batches of
    several samples.

    The model only gets hooks; its state dict and names do not change. For `torch.compile` give
    `form`; what was compiled before the pool was made is compiled again. On a GPU, use the pool
    from the stream that it was made in.

    Args:
        model: any that `inject` takes, without adapters, on its device.
        limit: bytes that adapters and banks may use on the device. When a new one does not fit,
            the least recently used leave, but none that a running batch uses. What is allocated
            may be more by about 1/8, as memory grows in steps. None: no limit.
        source: called with a name that is not in the pool, to get the adapter or the path of its
            packed file. Without it such a name is refused.
        form: rank, k and vector length (that divides every adapter's b) of every batch. With it a
            compiled model is not compiled again when adapters of other sizes come; every batch
            takes the time of these sizes, and larger adapters are refused. None: what a batch's
            own adapters need.

    Warns:
        VbfmtWarning: the model did not call a layer that an adapter of a batch changes.

    Raises:
        ModelError: the model has adapters or a pool already, is wrapped, offloaded, or on several
            devices.
        ConfigError: `limit`, `form` or `source` is not valid.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        limit: int | None = None,
        source: Callable[[str], Adapter | PathLike] | None = None,
        form: tuple[int, int, int] | None = None,
    ) -> None:
        require_settings(limit, form, source)
        require_bare(model)
        modules = dict(base_modules(model))
        served = {name: each for name, each in modules.items() if may_differ_by_sample(each)}
        require_in_memory(model, served)
        self._model = model
        self._modules = modules
        self._device = device_of(served)
        self._stream = stream_of(self._device)
        self._source = source
        self._residents = Residents(self._device, limit)
        self._staging = Staging(self._residents, served, self._device, form)
        self._intake = Intake(model, modules, self._device, self._residents.banks, form)
        self._key = next(_keys)
        self._served = served
        self._called: set[int] = set()
        self._warned = False
        self._hooks = [
            each.register_forward_hook(
                LayerHook(self._key, name, index, self._called), with_kwargs=True
            )
            for index, (name, each) in enumerate(served.items())
        ]
        pools.add(model)
        forget_compiled()

    @property
    def model(self) -> nn.Module:
        """The model that the pool serves."""
        return self._model

    @property
    def names(self) -> list[str]:
        """The adapters in the pool, the least recently used first."""
        return self._residents.names

    def __contains__(self, name: object) -> bool:
        return name in self._residents

    def __len__(self) -> int:
        return len(self._residents)

    @property
    def used_bytes(self) -> int:
        """Bytes on the device that adapters and banks use; at most `limit`."""
        return self._residents.used

    @property
    def reserved_bytes(self) -> int:
        """Bytes on the device that are allocated for adapters and banks, in use or not."""
        return self._residents.reserved

    @property
    def evicted(self) -> int:
        """Number of adapters that were evicted until now."""
        return self._residents.evicted

    def put(self, name: str, source: Adapter | PathLike, *, digest: str | None = None) -> None:
        """Put a packed adapter into the pool. One of that name is replaced; running batches keep it
        until they end.

        Args:
            name: what batches call it: any text but ``__base__``.
            source: an adapter, or the path of its packed file.
            digest: refuse a file of any other digest.

        Raises:
            ModelError: it belongs to another model; it has a tensor that cannot differ between the
                samples of a batch; or it does not fit beside what running batches use.
            ConfigError: not a name, or the adapter is larger than `form`.
            VbfmtError: the file is damaged or cannot be read.
        """
        if not isinstance(name, str) or name in ("", BASE):
            raise ConfigError("not a name for an adapter", found=repr(name), expected="a text")
        self._require_usable()
        if isinstance(source, Adapter):
            if digest is not None:
                raise ConfigError(
                    "`digest` needs a file", advice="compare the adapter's own .digest"
                )
            self._put(name, source)
            return
        try:
            self._put(name, load(source, digest=digest))
        except VbfmtError as error:
            raise error.in_file(source) from None

    def remove(self, name: str) -> None:
        """Take an adapter out of the pool; running batches keep it until they end.

        Raises:
            ModelError: there is no such adapter.
        """
        self._residents.remove(name)

    @contextlib.contextmanager
    def forward(self, names: Sequence[str | None], *, copies: int = 1) -> Iterator[None]:
        """In the block, and in this thread only, run the model on batches whose samples have these
        adapters.

        Args:
            names: the adapter of each sample in order; None or ``__base__`` for the base alone.
            copies: how many rows of the input belong to each sample, one after another, as in beam
                search.

        Raises:
            ModelError: an adapter is not in the pool and there is no `source`; a layer's input does
                not consist of these samples; the pool is closed, or the model moved or given an
                adapter, in the block; another block of this thread is suspended (in a generator or
                coroutine); or gradients are to be computed with gradient checkpointing.
        """
        self._require_usable()
        require_no_checkpointing(self._model)
        found = wanted(names)
        if not is_count(copies):
            raise ConfigError("copies is out of range", found=copies, expected="at least 1")
        residents = self._pinned(found)
        try:
            batch = self._staging.batch(residents, copies)
            with run(self._key, batch):
                yield
                self._require_usable()
            self._warn_of_layers_never_called(batch)
        finally:
            self._residents.unpin(residents)

    def generate(self, *args: Any, adapter_names: Sequence[str | None], **kwargs: Any) -> Any:
        """Call `model.generate` with an adapter for each sample, as with PEFT's models.

        Args:
            *args, **kwargs: of transformers' `generate`; beam search and several sequences per
                sample too.
            adapter_names: as `names` of `forward`.

        Raises:
            ModelError: as `forward`; or the model does not generate.
        """
        generate = getattr(self._model, "generate", None)
        if generate is None:
            raise ModelError("the model does not generate", found=type(self._model).__name__)
        config = kwargs.get("generation_config") or getattr(self._model, "generation_config", None)
        copies = [
            kwargs.get(key, getattr(config, key, None)) or 1
            for key in ("num_beams", "num_return_sequences")
        ]
        with self.forward(adapter_names, copies=max(copies)):
            return generate(*args, **kwargs)

    def close(self) -> None:
        """Remove the pool from the model, which is then what it was before."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        pools.discard(self._model)
        forget_compiled()
        for name in self.names:
            self._residents.remove(name)

    def _put(self, name: str, adapter: Adapter) -> None:
        prepared = self._intake.prepared(adapter)
        self._staging.know(prepared.layout)
        self._residents.put(name, prepared)

    def _pinned(self, names: list[str | None]) -> list[Resident | None]:
        """Return the adapters of a batch, after fetching those that are missing."""
        if self._source is None:
            return self._residents.pin(names)
        different = [name for name in dict.fromkeys(names) if name is not None]
        held = self._residents.pin_present(different)  # so that loading one does not evict another
        try:
            for name in different:
                while name not in held:
                    self.put(name, self._source(name))
                    held |= self._residents.pin_present([name])
            # Not by name again: one that was replaced meanwhile may have left already.
            found = [None if name is None else held[name] for name in names]
            self._residents.pin_again(found)
            return found
        finally:
            self._residents.unpin(list(held.values()))

    def _warn_of_layers_never_called(self, batch: Batch) -> None:
        """Warn once about layers that were not called. Some models read a layer's weight instead,
        so that an adapter has an effect there only if it is merged. Compiled layers do not count
        their calls."""
        dynamo = sys.modules.get("torch._dynamo.utils")
        if self._warned or not self._called or (dynamo and dynamo.counters["frames"]):
            return
        changed = [index for index, part in enumerate(batch.parts) if part is not None]
        dead = [index for index in changed if index not in self._called]
        if dead:
            self._warned = True
            names = [*self._served]
            warn(
                f"{few([names[index] for index in dead])}: these layers were not called, so "
                f"adapters have no effect there"
            )

    def _require_usable(self) -> None:
        """Refuse a batch that would be computed wrongly without an error."""
        if not self._hooks:
            raise ModelError("the pool is closed")
        if find_adapters(self._model) is not None:
            raise ModelError(
                "the model has got an adapter of its own beside the pool's",
                advice="eject it, or close the pool",
            )
        now = device_of(self._modules)
        if now != self._device:
            raise ModelError(
                "the model was moved",
                found=now,
                expected=self._device,
                advice="move the model first, and then make the pool",
            )
        if stream_of(self._device) != self._stream:
            raise ModelError(
                "another CUDA stream than the one in which the pool was made",
                advice="use the pool in one stream",
            )
