"""Types of models whose tensors have the same names on the disk and in the loaded model.

``model_types.json`` lists the types of one version of transformers, with and without renaming.
Update it for the installed version with

    python -m vbfmt.converters.names.plain converters/names/model_types.json
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any, Literal

_EVERYWHERE = re.compile(
    r"LayerNorm\.(gamma|beta)|\.weight_[gv]$|^model\.language_model\.model|^language_model\.model\.model"
)
"""Matches names that transformers renames in models of any type."""

Kind = Literal["plain", "renamed"]


def kind_of(config: Mapping[str, Any], tensors: Collection[str]) -> Kind | None:
    """Return whether transformers renames a base's tensors when it loads them.

    Args:
        config: content of the base's ``config.json``.
        tensors: names of the tensors in the base's files.

    Returns:
        ``plain`` if it renames none, ``renamed`` if it may, None if the type is not in the table.
    """
    types = list(_types(config))
    table = _table()
    if not types or not table["plain"] | table["renamed"] >= set(types):
        return None
    renamed = any(each in table["renamed"] for each in types)
    return "renamed" if renamed or any(map(_EVERYWHERE.search, tensors)) else "plain"


@cache
def _table() -> dict[str, set[str]]:
    from importlib import resources

    text = resources.files(__package__).joinpath("model_types.json").read_text()
    return {kind: set(types) for kind, types in json.loads(text).items() if kind != "transformers"}


def _types(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the type of a model, and of the models within it."""
    waiting: list[Any] = [config]
    while waiting:
        level = waiting.pop()
        kind = level.get("model_type")
        if isinstance(kind, str):
            yield kind
        waiting += [value for value in level.values() if isinstance(value, Mapping)]


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
