"""The names that a base's tensors have in the running model, as transformers itself gives them.

The model is built on PyTorch's meta device from the base's config, and its tensors' names are
taken through the same steps as `from_pretrained` takes them. Nothing is loaded; no code of the
base is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """What a tensor of the running model is made of.

    Attributes:
        names: of the tensors on the disk.
        first: the first of the tensors that transformers makes of them, by which it names them.
        converter: what transformers does to them; None for nothing but a new name.
        patterns: the pattern of the converter that each name matches.
    """

    names: tuple[str, ...]
    first: str
    converter: Any = None
    patterns: tuple[str, ...] = ()


@dataclass
class Running:
    """A model as transformers would load it from the tensors on the disk.

    Attributes:
        model: on the meta device.
        disk: shapes of the tensors on the disk.
        shapes: of the tensors of the running model.
        sources: what each of them is made of; those that are missing have none.
        ties: names of tensors that the model keeps equal, in groups.
    """

    model: Any
    disk: Mapping[str, Shape]
    shapes: dict[str, Shape]
    sources: dict[str, Source]
    ties: tuple[frozenset[str], ...]
    _transforms: tuple[list[Any], list[Any]]
    _traces: dict[str, dict[str, Index]] = field(default_factory=dict)

    def renamed(self, names: Iterable[str]) -> dict[str, tuple[str, str | None]]:
        """What transformers makes of names on the disk, and the converter's pattern each matches.

        Some of its renamings depend on those before, so all names are given at once.
        """
        from transformers.core_model_loading import dot_natural_key

        transforms = deepcopy(self._transforms)
        ordered = sorted(names, key=dot_natural_key)
        return {name: _renamed(name, self.model, self.shapes, transforms) for name in ordered}

    def indices(self, name: str) -> Index:
        """For every element of a running tensor its number among those on the disk that it is made
        of, counted through them in the order of `Source.names`.

        Raises:
            ValueError: transformers does more to them than to put their elements elsewhere.
        """
        source = self.sources[name]
        if source.first not in self._traces:
            self._traces[source.first] = self._trace(source)
        found = self._traces[source.first].get(name)
        if found is None or found.shape != self.shapes[name]:
            raise ValueError(f"{name} is not made of {', '.join(source.names[:2])}")
        return found

    def _trace(self, source: Source) -> dict[str, Index]:
        import torch

        converter = deepcopy(source.converter)
        start = 0
        for name, pattern in zip(source.names, source.patterns, strict=True):
            shape = self.disk[name]
            count = int(np.prod(shape, dtype=np.int64))
            numbers = torch.arange(start, start + count).reshape(shape)
            converter.add_tensor(source.first, name, pattern, numbers)
            start += count
        made = converter.convert(source.first, model=self.model, config=self.model.config)
        result = {}
        for name, value in made.items():
            tensor = value[0] if isinstance(value, list) else value
            result[name] = tensor.numpy()
        return result

    def earlier(self, name: str) -> Iterator[str]:
        """Names from which transformers may make this one of the running model.

        Each of its renamings undone alone, then all in turn, then two of them. Whether one is
        right must be tried.
        """
        undone = []
        for each in reversed(self._transforms[0]):
            with suppress(Exception):  # some cannot be undone
                undone.append(each.reverse_transform())
        seen = {name}
        singles = [other for each in undone if (other := _applied(each, name)) != name]
        whole = name
        for each in undone:
            whole = _applied(each, whole)
        twice = (_applied(each, other) for other in singles for each in undone)
        for other in chain(singles, [whole], twice):
            if other not in seen:
                seen.add(other)
                yield other

    def converter(self, pattern: str) -> Any:
        """The converter that has this pattern among its sources."""
        return next((each for each in self._transforms[1] if pattern in each.source_patterns), None)


def build(
    config: Mapping[str, Any], disk: Mapping[str, Shape], name: str | None = None
) -> Running | None:
    """The model that a config describes.

    Args:
        config: what ``config.json`` says.
        disk: shapes of the tensors in the base's files.
        name: of the class; the one that the config names if left out.

    Returns:
        None where transformers 5 is not installed or does not know or cannot build the model.
    """
    try:
        import torch
        import transformers

        from vbfmt.estimate.meta import require_sane

        require_sane(dict(config))
        cls = class_of(config, name)
        if cls is None:
            return None
        built = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(_decoded(config))
        with torch.device("meta"):
            model = cls(built)
        return _running(model, disk)
    except Exception:  # noqa: BLE001 - whatever a config can do to transformers
        return None


def is_installed() -> bool:
    """Whether a transformers is installed that says what it renames."""
    try:
        import transformers.conversion_mapping  # noqa: F401
    except ImportError:
        return False
    return True


def has_experts(model: Any) -> bool | None:
    """Whether PEFT would convert a LoRA for fused experts; None without transformers 5."""
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    except ImportError:
        return None
    mapping: Any = get_checkpoint_conversion_mapping
    kind = getattr(getattr(model, "config", None), "model_type", None)
    found = mapping(kind) if kind else None
    return any(hasattr(each, "operations") for each in found or ())


def _decoded(value: Any) -> Any:
    """A config's value with the numbers that transformers writes as ``{"__float__": …}``."""
    if isinstance(value, Mapping):
        if set(value) == {"__float__"}:
            return float(value["__float__"])
        return {key: _decoded(inner) for key, inner in value.items()}
    return [_decoded(inner) for inner in value] if isinstance(value, list) else value


def of_model(model: Any) -> Running | None:
    """What transformers renames for a model at hand, without anything on a disk; None where
    transformers 5 does not know it."""
    try:
        return _running(model, {})
    except Exception:  # noqa: BLE001 - no transformers, or no model of its
        return None


def _running(model: Any, disk: Mapping[str, Shape]) -> Running:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    transforms = get_model_conversion_mapping(model)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    pair = (
        [each for each in transforms if isinstance(each, WeightRenaming)],
        [each for each in transforms if isinstance(each, WeightConverter)],
    )
    return Running(model, disk, shapes, _sources(model, disk, shapes, pair), _ties(model), pair)


def _ties(model: Any) -> tuple[frozenset[str], ...]:
    groups: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), set()).add(name)
    return tuple(frozenset(names) for names in groups.values() if len(names) > 1)


def class_of(config: Mapping[str, Any], name: str | None = None) -> Any:
    """transformers' class of that name, or of the config's own; None if it has no such model."""
    import transformers

    named = config.get("architectures")
    chosen = name or (named[0] if isinstance(named, list) and named else None)
    if not isinstance(chosen, str) or config.get("model_type") not in transformers.CONFIG_MAPPING:
        return None
    found = getattr(transformers, chosen, None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model else None


def _sources(
    model: Any, disk: Mapping[str, Shape], shapes: Mapping[str, Shape], pair: tuple[Any, Any]
) -> dict[str, Source]:
    """As `convert_and_load_state_dict_in_model` collects them."""
    from transformers.core_model_loading import dot_natural_key

    transforms = deepcopy(pair)
    converters = {key: each for each in transforms[1] for key in each.source_patterns}
    whole: dict[str, Source] = {}
    parts: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(disk, key=dot_natural_key):
        target, pattern = _renamed(name, model, shapes, transforms)
        if target not in shapes:
            continue
        if pattern is None:
            if target not in parts:
                whole.setdefault(target, Source((name,), target))
        elif target not in whole:
            parts.setdefault(target, []).append((name, pattern))
    for first, collected in parts.items():
        converter = converters[collected[0][1]]
        names, patterns = zip(*collected, strict=True)
        source = Source(names, first, converter, patterns)
        for pattern in converter.target_patterns:
            target = first.replace(converter.target_patterns[0], pattern)
            if target in shapes:
                whole.setdefault(target, source)
        whole.setdefault(first, source)
    return whole


def _applied(renaming: Any, name: str) -> str:
    try:
        return str(renaming.rename_source_key(name)[0])
    except Exception:  # noqa: BLE001 - whatever a pattern has against this name
        return name


def _renamed(
    name: str, model: Any, shapes: Mapping[str, Shape], transforms: tuple[list[Any], list[Any]]
) -> tuple[str, str | None]:
    from transformers.core_model_loading import rename_source_key

    rename: Any = rename_source_key  # it asks no more of a state dict than its names
    prefix = model.base_model_prefix
    target, pattern = rename(name, *transforms, prefix, shapes)
    if target not in shapes and name in shapes:
        target, pattern = rename(name, [], [], prefix, shapes)
    return target, pattern


def number_in(pattern: str, name: str) -> int | None:
    """The number that stands for the ``*`` of a converter's pattern, such as an expert's."""
    body = r"(\d+)".join(part if "\\" in part else re.escape(part) for part in pattern.split("*"))
    match = re.search(body, name)
    return int(match[1]) if match and match.groups() else None
