"""Check an adapter against the model, and prepare it for the pool's memory."""

from __future__ import annotations

import weakref
from typing import cast

import torch
from torch import Tensor, nn

from vbfmt.adapter import Adapter
from vbfmt.errors import ConfigError, ModelError
from vbfmt.torch.matching import matching_layers
from vbfmt.torch.pool.banks import Banks
from vbfmt.torch.pool.layout import Layout, pack
from vbfmt.torch.pool.own_tensors import own_tensors
from vbfmt.torch.pool.residents import Prepared


class Intake:
    """Prepares adapters for a pool. The caller need not hold the lock.

    Args:
        form: rank, k and vector length that adapters must fit; None for any.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        banks: Banks,
        form: tuple[int, int, int] | None,
    ) -> None:
        self._model = model
        self._device = device
        self._banks = banks
        self._form = form
        self._layouts: weakref.WeakValueDictionary[tuple[object, ...], Layout]
        self._layouts = weakref.WeakValueDictionary()

    def prepare(self, adapter: Adapter) -> Prepared:
        """Return the adapter's bytes, its bank's digest and its own tensors on the device.

        Raises:
            ModelError: the adapter belongs to another model, or has a tensor that cannot differ
                within a batch.
            ConfigError: the adapter does not fit the form.
            ContentError: values of an adapter that was loaded with ``verify=False`` break a rule.
        """
        layout = self._layout(adapter)
        self._require_form(layout)
        bank = self._banks.key(adapter.bank)
        own = own_tensors(adapter, self._model)
        return Prepared(layout, pack(adapter), bank, adapter.bank, own)

    def _layout(self, adapter: Adapter) -> Layout:
        """Return the adapter's layout, one object per layout. Check a new layout against the
        model."""
        fresh = Layout.of(adapter)
        known = self._layouts.get(fresh.key)
        if known is not None:
            return known
        for name, layer in matching_layers(self._model, adapter).items():
            if cast(Tensor, layer.weight).device != self._device:
                raise ModelError(
                    "a layer is not on the pool's device",
                    part=name,
                    found=cast(Tensor, layer.weight).device,
                    expected=self._device,
                )
        return self._layouts.setdefault(fresh.key, fresh)

    def _require_form(self, layout: Layout) -> None:
        if self._form is None:
            return
        rank, k, length = self._form
        largest = max(module.rank for module in layout.modules)
        if largest > rank or layout.k > k or layout.b % length:
            raise ConfigError(
                "the adapter is larger than the pool's form",
                found=f"rank {largest}, k {layout.k}, b {layout.b}",
                expected=f"rank ≤ {rank}, k ≤ {k}, b a multiple of {length}",
                advice="create the pool with another form, or without one",
            )
