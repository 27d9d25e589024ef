"""Find the names that a base's tensors get when transformers loads them.

The model is built on PyTorch's meta device from the base's config, and the names in the base's
files are processed as in `from_pretrained`. No values are loaded, and no code of the base is run.
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
    """The tensors on the disk from which a tensor of the loaded model is made.

    Attributes:
        names: their names.
        first: name of the first tensor that transformers makes from them. The converter collects
            its inputs under this name.
        converter: the `WeightConverter` that transformers applies; None if it only renames a
            tensor.
        patterns: for each of `names`, the converter's pattern that it matches.
    """

    names: tuple[str, ...]
    first: str
    converter: Any = None
    patterns: tuple[str, ...] = ()


@dataclass
class LoadedModel:
    """A model as transformers would load it from the tensors on the disk.

    Attributes:
        model: the model, on the meta device unless it is an existing model.
        disk: shapes of the tensors on the disk, by name.
        shapes: shapes of the tensors of the loaded model, by name.
        sources: name in the loaded model → the tensor's source. Tensors that the disk lacks have no
            entry.
        ties: groups of names of tied tensors, which share one parameter.
    """

    model: Any
    disk: Mapping[str, Shape]
    shapes: dict[str, Shape]
    sources: dict[str, Source]
    ties: tuple[frozenset[str], ...]
    _transforms: tuple[list[Any], list[Any]]
    _traces: dict[str, dict[str, Index]] = field(default_factory=dict)

    def renamed(self, names: Iterable[str]) -> dict[str, tuple[str, str | None]]:
        """Return each disk name's name in the loaded model, and the converter pattern that it
        matches.

        The pattern is None if the name matches none. Give all names in one call, because some
        renamings of transformers depend on earlier names.
        """
        from transformers.core_model_loading import dot_natural_key

        transforms = deepcopy(self._transforms)
        ordered = sorted(names, key=dot_natural_key)
        return {name: _renamed(name, self.model, self.shapes, transforms) for name in ordered}

    def indices(self, name: str) -> Index:
        """Return the element on the disk from which each element of a loaded tensor comes.

        Args:
            name: the tensor's name in the loaded model. It must have a converter.

        Returns:
            int64 numbers, with the tensor's shape. The elements of all tensors in `Source.names`
            are numbered consecutively, in this order.

        Raises:
            ValueError: the converter also changes or combines elements.
        """
        source = self.sources[name]
        if source.first not in self._traces:
            self._traces[source.first] = self._trace(source)
        found = self._traces[source.first].get(name)
        if found is None or found.shape != self.shapes[name]:
            raise ValueError(f"{name} is not made of {', '.join(source.names[:2])}")
        return found

    def _trace(self, source: Source) -> dict[str, Index]:
        """Apply a converter to the numbers of the elements instead of their values."""
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
        """Yield candidates for names that transformers renames to `name`.

        They are found by undoing one renaming of transformers, all renamings in turn, or two of
        them. The caller must check which candidate is right.
        """
        undone = []
        for each in reversed(self._transforms[0]):
            with suppress(Exception):  # some renamings cannot be undone
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
        """Return the converter that has `pattern` among its source patterns, or None."""
        return next((each for each in self._transforms[1] if pattern in each.source_patterns), None)


def build(
    config: Mapping[str, Any], disk: Mapping[str, Shape], name: str | None = None
) -> LoadedModel | None:
    """Build the model that a config describes, on the meta device.

    Args:
        config: content of the base's ``config.json``.
        disk: shapes of the tensors in the base's files, by name.
        name: name of the transformers class; by default, the class that the config names.

    Returns:
        The model, or None if transformers 5 is not installed, does not know the model or cannot
        build it.
    """
    try:
        import torch
        import transformers

        from vbfmt.estimate.meta import require_few_layers

        require_few_layers(dict(config))
        cls = class_of(config, name)
        if cls is None:
            return None
        built = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(_decoded(config))
        with torch.device("meta"):
            model = cls(built)
        return _described(model, disk)
    except Exception:  # noqa: BLE001 - a config can make transformers raise anything
        return None


def is_installed() -> bool:
    """Return whether transformers is installed in a version that has a conversion mapping."""
    try:
        import transformers.conversion_mapping  # noqa: F401
    except ImportError:
        return False
    return True


def has_experts(model: Any) -> bool | None:
    """Return whether PEFT would convert a LoRA on this model to a LoRA for fused experts.

    Returns:
        The answer, or None if transformers 5 is not installed.
    """
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    except ImportError:
        return None
    mapping: Any = get_checkpoint_conversion_mapping
    kind = getattr(getattr(model, "config", None), "model_type", None)
    found = mapping(kind) if kind else None
    return any(hasattr(each, "operations") for each in found or ())


def _decoded(value: Any) -> Any:
    """Return a config's value, with every ``{"__float__": …}`` decoded as a float, as in
    transformers."""
    if isinstance(value, Mapping):
        if set(value) == {"__float__"}:
            return float(value["__float__"])
        return {key: _decoded(inner) for key, inner in value.items()}
    return [_decoded(inner) for inner in value] if isinstance(value, list) else value


def of_model(model: Any) -> LoadedModel | None:
    """Return an existing model as a `LoadedModel` without tensors on the disk.

    Returns:
        The model, or None if transformers 5 is not installed or has no such model.
    """
    if not hasattr(model, "base_model_prefix"):
        return None
    try:
        return _described(model, {})
    except Exception:  # noqa: BLE001 - any module may be given
        return None


def _described(model: Any, disk: Mapping[str, Shape]) -> LoadedModel:
    """Describe a model: the names and shapes of its tensors, and how transformers makes them from
    `disk`."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    transforms = get_model_conversion_mapping(model)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    sources = _sources(model, disk, shapes, (renamings, converters))
    return LoadedModel(model, disk, shapes, sources, _ties(model), (renamings, converters))


def _ties(model: Any) -> tuple[frozenset[str], ...]:
    """Return the groups of names that share one parameter."""
    groups: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), set()).add(name)
    return tuple(frozenset(names) for names in groups.values() if len(names) > 1)


def class_of(config: Mapping[str, Any], name: str | None = None) -> Any:
    """Return the transformers class with this name; by default, the first class in the config.

    Returns:
        The class, or None if transformers has no such model class.
    """
    import transformers

    named = config.get("architectures")
    chosen = name or (named[0] if isinstance(named, list) and named else None)
    if not isinstance(chosen, str) or config.get("model_type") not in transformers.CONFIG_MAPPING:
        return None
    found = getattr(transformers, chosen, None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model else None


def _sources(
    model: Any, disk: Mapping[str, Shape], shapes: Mapping[str, Shape], transforms: tuple[Any, Any]
) -> dict[str, Source]:
    """Return the sources of the loaded model's tensors, by name.

    They are collected as in transformers' `convert_and_load_state_dict_in_model`.

    Args:
        transforms: transformers' renamings and converters.
    """
    from transformers.core_model_loading import dot_natural_key

    transforms = deepcopy(transforms)
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
    except Exception:  # noqa: BLE001 - transformers may raise anything for a name
        return name


def _renamed(
    name: str, model: Any, shapes: Mapping[str, Shape], transforms: tuple[list[Any], list[Any]]
) -> tuple[str, str | None]:
    from transformers.core_model_loading import rename_source_key

    rename: Any = rename_source_key  # typed for a state dict, of which it uses only the names
    prefix = model.base_model_prefix
    target, pattern = rename(name, *transforms, prefix, shapes)
    if target not in shapes and name in shapes:
        target, pattern = rename(name, [], [], prefix, shapes)
    return target, pattern


def number_in(pattern: str, name: str) -> int | None:
    """Return the number in a name at the ``*`` of a converter's pattern, such as an expert's index.

    If the name does not match the pattern, return None.
    """
    body = r"(\d+)".join(part if "\\" in part else re.escape(part) for part in pattern.split("*"))
    match = re.search(body, name)
    return int(match[1]) if match and match.groups() else None
