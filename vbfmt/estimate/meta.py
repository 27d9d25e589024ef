"""Find the linear layers of any model that transformers can build, without weights."""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers

from vbfmt.errors import SourceError, warn
from vbfmt.estimate.architecture import MOST_LAYERS, Linear

_COUNT = re.compile(r"layer|depth|(^|_)n(um)?_.*(blocks|stages|experts)$")
_IN_A_BLOCK = re.compile(r"(^|\.)\d+\.")


def linears_on_meta(config: dict[str, Any]) -> tuple[Linear, ...]:
    """Return the linear layers in the repeated blocks of the model that `config` describes.

    Layers with one output (gates) are left out, because only b = 1 would fit them.

    Args:
        config: the content of ``config.json``.

    Raises:
        SourceError: transformers cannot build the model, or it has no such layers.

    Warns:
        VbfmtWarning: the blocks have other matrices, which are not counted.
    """
    kind = config.get("model_type")
    require_few_layers(config)
    try:
        settings = {key: value for key, value in config.items() if key != "model_type"}
        built = transformers.AutoConfig.for_model(str(kind), **settings)
        with torch.device("meta"):
            make: Any = transformers.AutoModel.from_config
            model = make(built, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - a wrong config can raise anything
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise SourceError(
            "transformers cannot build this model", part="model_type", found=f"{kind!r}: {reason}"
        ) from None
    layers = [
        _linear(name, module)
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, transformers.pytorch_utils.Conv1D))
        and _IN_A_BLOCK.search(name)
    ]
    found = tuple(layer for layer in layers if layer.out_features > 1)
    if not found:
        raise SourceError("the model has no linear layers in blocks", part="model_type", found=kind)
    if others := _other_matrices(model, {layer.name for layer in found}):
        kinds = list(dict.fromkeys(_IN_A_BLOCK.split(name)[-1] for name in others))
        warn(
            f"not counted: {sum(others.values()):,} parameters in blocks, in {len(others)} "
            f"matrices that are not linear layers or have one output ({', '.join(kinds[:4])})"
        )
    return found


def _other_matrices(model: Any, counted: set[str]) -> dict[str, int]:
    """Return the number of parameters of each matrix in blocks that belongs to no counted layer."""
    return {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1
        and _IN_A_BLOCK.search(name)
        and name.removesuffix(".weight") not in counted
    }


def _linear(name: str, module: Any) -> Linear:
    rows, columns = (int(n) for n in module.weight.shape)
    if isinstance(module, torch.nn.Linear):
        return Linear(name, columns, rows)
    return Linear(name, rows, columns, fan_in_fan_out=True)


def require_few_layers(config: dict[str, Any]) -> None:
    """Check that a config and the configs nested in it do not have too many layers.

    Building a model of a billion layers would take forever, even without weights.

    Raises:
        SourceError: a number of layers is too large.
    """
    waiting: list[tuple[str, Any]] = list(config.items())
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{key}.{inner}", part) for inner, part in value.items()]
        elif isinstance(value, list):
            waiting += [(key, part) for part in value]
        elif isinstance(value, int) and value > MOST_LAYERS and _COUNT.search(_leaf(key)):
            raise SourceError(
                "too many layers", part=key, found=value, expected=f"at most {MOST_LAYERS}"
            )


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]
