"""The linear layers of any model that transformers knows, built without weights."""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers

from vbfmt.errors import SourceError
from vbfmt.estimate.architecture import Linear

_MOST_LAYERS = 4096


def linears_on_meta(config: dict[str, Any]) -> tuple[Linear, ...]:
    """The linear layers of the repeated blocks of the model that `config` describes.

    Raises:
        SourceError: transformers does not know it, cannot build it, or it has no such layers.
    """
    kind = config.get("model_type")
    _require_sane(config)
    try:
        settings = {key: value for key, value in config.items() if key != "model_type"}
        built = transformers.AutoConfig.for_model(str(kind), **settings)
        with torch.device("meta"):
            make: Any = transformers.AutoModel.from_config
            model = make(built, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - whatever a config can do to transformers
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise SourceError(
            "transformers cannot build this model", part="model_type", found=f"{kind!r}: {reason}"
        ) from None
    found = tuple(
        _linear(name, module)
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, transformers.pytorch_utils.Conv1D))
        and re.search(r"(^|\.)\d+\.", name)
    )
    if not found:
        raise SourceError("the model has no linear layers in blocks", part="model_type", found=kind)
    return found


def _linear(name: str, module: Any) -> Linear:
    rows, columns = (int(n) for n in module.weight.shape)
    if isinstance(module, torch.nn.Linear):
        return Linear(name, columns, rows)
    return Linear(name, rows, columns, fan_in_fan_out=True)


def _require_sane(config: dict[str, Any]) -> None:
    """A model of a billion layers would be built for ever, weights or not."""
    for key, value in config.items():
        if "layer" in key and isinstance(value, int) and value > _MOST_LAYERS:
            raise SourceError(
                "too many layers", part=key, found=value, expected=f"at most {_MOST_LAYERS}"
            )
