"""Look up model types whose tensors have the same names on the disk and in the loaded model.

``model_types.json`` lists the types of one version of transformers, with and without renaming.
Update it for the installed version with

    python -m tests.architectures.model_types converters/names/model_types.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
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
        ``plain`` if it renames none, ``renamed`` if it may rename some, None if the type is
        unknown.
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
