"""Trained tensors that the base's files divide differently: several of them are one tensor there,
or one is several."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vbfmt.converters.merge.arithmetic import FLOATS
from vbfmt.converters.merge.base import Base
from vbfmt.converters.names.locations import Locations
from vbfmt.errors import SourceError
from vbfmt.tensors import Tensor, numpy_dtype


def tensors(base: Base, locations: Locations, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return, by name, the base's tensors that contain trained ones, with the trained values.

    Args:
        base: the base model.
        locations: where the adapter's tensors are in the base's files.
        trained: the trained tensors, by their names in the loaded model.

    Raises:
        SourceError: a trained tensor does not fit the base.
    """
    result: dict[str, Tensor] = {}
    loaded = locations.loaded_model
    if loaded is None:
        return result
    for target, tensor in trained.items():
        if tensor.shape != loaded.shapes[target] or tensor.dtype not in FLOATS:
            raise SourceError(
                "a trained tensor does not fit the base",
                file=base.path,
                part=target,
                found=tensor,
                expected=loaded.shapes[target],
                advice="is this the base that the adapter was trained on?",
            )
        try:
            numbers = loaded.indices(target).reshape(-1)
        except Exception as error:  # noqa: BLE001 - transformers' conversions may raise anything
            raise SourceError(
                "cannot find a trained tensor in the base's files",
                file=base.path,
                part=target,
                found=error,
            ) from None
        values = tensor.numpy().reshape(-1)
        start = 0
        for name in loaded.sources[target].names:
            before = result.get(name, base.tensors[name])
            size = int(np.prod(before.shape, dtype=np.int64))
            inside = (numbers >= start) & (numbers < start + size)
            wide = np.float64 if "F64" in (before.dtype, tensor.dtype) else np.float32
            new = before.numpy().reshape(-1).astype(wide)
            new[numbers[inside] - start] = values[inside].astype(wide)
            dtype = (
                before.dtype
                if before.dtype == tensor.dtype
                else "F64"
                if wide is np.float64
                else "F32"
            )
            result[name] = Tensor.of(new.astype(numpy_dtype(dtype)).reshape(before.shape))
            start += size
    return result
