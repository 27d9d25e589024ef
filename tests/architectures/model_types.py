"""Types of models whose tensors the installed transformers renames:
``python -m tests.architectures.model_types converters/names/model_types.json``."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any


def table_of_installed() -> dict[str, Any]:
    """Return the content of ``model_types.json`` for the installed version of transformers."""
    import transformers
    from transformers import conversion_mapping

    mapping: Any = conversion_mapping.get_checkpoint_conversion_mapping

    def is_renamed(kind: str, seen: frozenset[str] = frozenset()) -> bool:
        try:
            config = transformers.CONFIG_MAPPING[kind]
        except Exception:  # noqa: BLE001 - packages that are not installed
            return True
        if kind in seen:
            return False
        inner = [c.model_type for c in config.sub_configs.values() if hasattr(c, "model_type")]
        return (
            mapping(kind) is not None
            or any(mapping(name) is not None for name in _classes(config))
            or any(is_renamed(each, seen | {kind}) for each in inner if each)
        )

    kinds = sorted(transformers.CONFIG_MAPPING)
    return {
        "transformers": transformers.__version__,
        "plain": [kind for kind in kinds if not is_renamed(kind)],
        "renamed": [kind for kind in kinds if is_renamed(kind)],
    }


def _classes(config: Any) -> list[str]:
    """Return the names in the Python module that defines a config's models."""
    try:
        return dir(import_module(config.__module__.replace(".configuration_", ".modeling_")))
    except Exception:  # noqa: BLE001 - packages that are not installed
        return []


if __name__ == "__main__":
    with open(sys.argv[1], "w") as stream:
        json.dump(table_of_installed(), stream, indent=1)
        stream.write("\n")
