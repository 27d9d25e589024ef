"""Place trained tensors in the base's files if the files join or split them differently."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vbfmt.converters.merge.arithmetic import FLOATS
from vbfmt.converters.merge.base import Base
from vbfmt.converters.names.locations import Locations
from vbfmt.errors import SourceError
from vbfmt.tensors import Tensor, numpy_dtype


def tensors(base: Base, locations: Locations, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the base's tensors that contain trained tensors, by name, with the trained values.

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
        start = 0
        for name in loaded.sources[target].names:
            before = result.get(name, base.tensors[name])
            result[name] = _with_elements(before, tensor, numbers - start)
            start += math.prod(before.shape)
    return result


def _with_elements(before: Tensor, trained: Tensor, positions: NDArray[np.int64]) -> Tensor:
    """Return a copy of `before` with the elements of `trained` at the flat indices `positions`.

    Positions outside the tensor are ignored. If the dtypes differ, the result is float64 if one of
    them is float64, else float32.
    """
    wide = "F64" if "F64" in (before.dtype, trained.dtype) else "F32"
    values = before.numpy().reshape(-1).astype(numpy_dtype(wide))
    inside = (positions >= 0) & (positions < len(values))
    values[positions[inside]] = trained.numpy().reshape(-1)[inside].astype(numpy_dtype(wide))
    dtype = before.dtype if before.dtype == trained.dtype else wide
    return Tensor.of(values.astype(numpy_dtype(dtype)).reshape(before.shape))
