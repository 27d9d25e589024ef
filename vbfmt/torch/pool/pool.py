"""`AdapterPool`: serve thousands of packed adapters with one model, mixed in a batch."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from vbfmt._files import PathLike
from vbfmt.adapter import Adapter
from vbfmt.errors import ConfigError, ModelError, in_file
from vbfmt.packed import load
from vbfmt.torch.adapters import find_adapters
from vbfmt.torch.config import is_count
from vbfmt.torch.pool.batch import Staging
from vbfmt.torch.pool.calls import Calls
from vbfmt.torch.pool.intake import Intake
from vbfmt.torch.pool.layers import LayerHook
from vbfmt.torch.pool.names import media_layers
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

_keys = itertools.count(1)


class AdapterPool:
    """Packed adapters that one model serves together. Each sample of a batch has its own adapter.

    >>> pool = AdapterPool(model, limit=10 * 2**30)
    >>> pool.put("ada", "ada.vblora")
    >>> pool.put("bob", "bob.vblora")
    >>> with pool.forward(["ada", None, "bob"]):
    ...     logits = model(**three_samples).logits
    >>> pool.generate(**three_samples, adapter_names=["ada", None, "bob"])

    The device holds the adapters' packed indices and weights, one copy of each bank, and the
    adapters' own biases and heads. Factors are composed while a layer computes, and are not kept.
    Any thread may add and remove adapters while the model runs. Outside `forward` and `generate`,
    the model runs as the base alone.

    Adapters may differ in rank, k, bank and adapted layers; they are computed together where that
    costs little. The first dimension of every adapted layer's input must be the samples, or all
    positions of all samples. Routed experts raise an error in batches of several samples.

    The pool only adds hooks to the model; its state dict and names do not change. For
    `torch.compile`, set `form`. Models compiled before the pool is created are compiled again. On a
    GPU, use the pool only in the stream in which it was created.

    Args:
        model: a model without adapters that `inject` would accept, already on its device.
        limit: bytes that adapters and banks may use on the device; None for no limit. If a new
            adapter does not fit, the least recently used ones are evicted, except those that a
            running batch uses. Up to about 1/8 more may be allocated, because memory grows in
            steps.
        source: a function from the name of an adapter that is not in the pool to the adapter or the
            path of its packed file. Without `source`, such a name raises an error.
        form: rank, k and vector length of every batch; the vector length must divide every
            adapter's b. With `form`, a compiled model is not compiled again for adapters of other
            sizes. But every batch takes the time of these sizes, and larger adapters are refused.
            None for the sizes that a batch's adapters need.

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
        self._intake = Intake(model, self._device, self._residents.banks, form)
        self._key = next(_keys)
        self._calls = Calls([*served])
        of_media = media_layers(model, served)
        self._hooks = [
            each.register_forward_hook(
                LayerHook(self._key, name, index, self._calls, of_media=name in of_media),
                with_kwargs=True,
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
        """Names of the adapters in the pool, the least recently used first."""
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
        """Number of adapters that have been evicted."""
        return self._residents.evicted

    def put(self, name: str, source: Adapter | PathLike, *, digest: str | None = None) -> None:
        """Add a packed adapter to the pool.

        An adapter with the same name is replaced. Running batches use the old one until they end.

        Args:
            name: the name for batches: any non-empty string except ``__base__``.
            source: an adapter, or the path of its packed file.
            digest: the digest that the file must have; None for any.

        Raises:
            ModelError: the adapter belongs to another model; it has a tensor that cannot differ
                between the samples of a batch; or it does not fit beside the adapters of running
                batches.
            ConfigError: `name` is not a name, or the adapter does not fit `form`.
            VbfmtError: the file is damaged or cannot be read.
        """
        if not isinstance(name, str) or name in ("", BASE):
            raise ConfigError(
                "not a name for an adapter", found=repr(name), expected="a non-empty string"
            )
        self._require_usable()
        if isinstance(source, Adapter):
            if digest is not None:
                raise ConfigError(
                    "`digest` needs a file", advice="compare the adapter's own .digest"
                )
            self._put(name, source)
            return
        with in_file(source):
            self._put(name, load(source, digest=digest))

    def remove(self, name: str) -> None:
        """Remove an adapter from the pool. Running batches use it until they end.

        Raises:
            ModelError: there is no such adapter.
        """
        self._residents.remove(name)

    @contextlib.contextmanager
    def forward(self, names: Sequence[str | None], *, copies: int = 1) -> Iterator[None]:
        """Within the block and in this thread, run the model on batches with these adapters.

        Args:
            names: the adapter of each sample in order; None or ``__base__`` for the base alone.
            copies: number of consecutive inputs per sample, as in beam search.

        Raises:
            ModelError: an adapter is not in the pool and there is no `source`; a layer's input does
                not consist of these samples; the pool is closed, the model is moved or an adapter
                is injected within the block; the model ran in another thread only; another block
                of this thread is suspended (in a generator or coroutine); or the model uses
                gradient checkpointing.
        """
        self._require_usable()
        require_no_checkpointing(self._model)
        found = wanted(names)
        if not is_count(copies):
            raise ConfigError("copies is out of range", found=copies, expected="at least 1")
        residents = self._pinned(found)
        try:
            batch = self._staging.batch(residents, copies)
            outside = self._calls.outside
            with run(self._key, batch):
                yield
                self._require_usable()
            self._calls.check(batch, outside)
        finally:
            self._residents.unpin(residents)

    def generate(self, *args: Any, adapter_names: Sequence[str | None], **kwargs: Any) -> Any:
        """Call `model.generate` with one adapter per sample, as with PEFT's models.

        Args:
            *args, **kwargs: arguments of transformers' `generate`. Beam search and several
                sequences per sample are supported.
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
        """Remove the pool's hooks from the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        pools.discard(self._model)
        forget_compiled()
        for name in self.names:
            self._residents.remove(name)

    def _put(self, name: str, adapter: Adapter) -> None:
        prepared = self._intake.prepare(adapter)
        self._staging.register(prepared.layout)
        self._residents.put(name, prepared)

    def _pinned(self, names: list[str | None]) -> list[Resident | None]:
        """Pin and return the adapters of a batch, after loading those that are missing."""
        if self._source is None:
            return self._residents.pin(names)
        different = [name for name in dict.fromkeys(names) if name is not None]
        held = self._residents.pin_present(different)  # so that loading one does not evict another
        try:
            for name in different:
                while name not in held:
                    self.put(name, self._source(name))
                    held |= self._residents.pin_present([name])
            # Not by name again: an adapter that was replaced meanwhile may have been evicted.
            found = [None if name is None else held[name] for name in names]
            self._residents.pin_again(found)
            return found
        finally:
            self._residents.unpin(list(held.values()))

    def _require_usable(self) -> None:
        """Refuse a batch that would silently be computed wrongly."""
        if not self._hooks:
            raise ModelError("the pool is closed")
        if find_adapters(self._model) is not None:
            raise ModelError(
                "an adapter was injected into the pool's model",
                advice="eject it, or close the pool",
            )
        now = device_of(self._modules)
        if now != self._device:
            raise ModelError(
                "the model was moved",
                found=now,
                expected=self._device,
                advice="move the model first, and then create the pool",
            )
        if stream_of(self._device) != self._stream:
            raise ModelError(
                "the current CUDA stream is not the one in which the pool was created",
                advice="use the pool in one stream only",
            )
