"""Find the tensors in a base's files that an adapter's modules and tensors belong to.

transformers renames tensors when it loads them (`transformers.conversion_mapping`). So a tensor may
have one name in the loaded model, which adapters use, and another name on the disk. transformers
also joins and splits tensors: for example, it loads the experts of a layer as one three-dimensional
parameter.

For many types of models, transformers does not rename tensors (`plain`). Names in the adapter and
on the disk then differ by at most one prefix, which is found by comparing them (`rule`). For other
types, transformers provides the names (`loaded_model`). The result is a `Locations` object, which
lists the tensors on the disk that an adapter changes (`locations`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vbfmt.converters.lowrank import LowRank
from vbfmt.converters.names import copies, loaded_model, locations, plain
from vbfmt.converters.names.loaded_model import Shape
from vbfmt.converters.names.locations import Locations
from vbfmt.converters.names.rule import SeveralPartsError
from vbfmt.errors import SourceError
from vbfmt.tensors import Tensor

_INSTALL = "pip install 'vbfmt[peft]' (transformers 5), which knows the names"
_CANNOT = "is this the base's own config? transformers cannot build the model from it"
_NOT_CHECKED = (
    "could not check that the adapter's names and the base's names mean the same tensors: "
    "transformers renames tensors of this model, but is not installed or cannot build it"
)


def locate(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    adapter: LowRank,
    *,
    part: str | None = None,
) -> Locations:
    """Find the tensors in a base's files that an adapter changes.

    Args:
        tensors: the base's tensors, by their names on the disk.
        config: content of the base's ``config.json``.
        adapter: the adapter.
        part: if the adapter's names match several parts of the base, the prefix of the names of the
            part to change, with or without the last dot.

    Raises:
        SourceError: a module has no weight in the files, or the files may hold a changed weight
            twice.
    """
    disk = {name: tensor.shape for name, tensor in tensors.items()}
    if part is not None:
        part = f"{part.removesuffix('.')}."
    found = _located(disk, config, adapter, part)
    notice = copies.require_single(disk, found)
    return found if notice is None else dataclasses.replace(found, notice=notice)


def _located(
    disk: Mapping[str, Shape], config: Mapping[str, Any], adapter: LowRank, part: str | None
) -> Locations:
    """Return the locations, on the assumption that the files hold every weight only once."""
    trained = {name: tensor.shape for name, tensor in adapter.tensors.items()}
    kind = plain.kind_of(config, disk)
    guess, error = _guess(adapter, trained, disk, part)
    if kind == "plain" and guess is not None and not guess.added:
        return dataclasses.replace(guess, build=lambda: loaded_model.build(config, disk))
    model = loaded_model.build(config, disk)
    if model is not None:
        try:
            return locations.in_loaded_model(model, adapter.modules, trained, part=part)
        except SourceError:
            if isinstance(error, SeveralPartsError):
                raise error from None
            if guess is None:
                raise
    if guess is None:
        assert error is not None
        error.advice = _advice() if kind == "renamed" and model is None else error.advice
        raise error
    if kind != "renamed":
        return guess
    if guess.added:
        raise SourceError(
            "the base has no tensor of that name, and transformers renames its tensors",
            part=next(iter(guess.added)),
            advice=_advice(),
        )
    return dataclasses.replace(guess, notice=_NOT_CHECKED)


def _advice() -> str:
    return _CANNOT if loaded_model.is_installed() else _INSTALL


def _guess(
    adapter: LowRank, trained: Mapping[str, Shape], disk: Mapping[str, Shape], part: str | None
) -> tuple[Locations | None, SourceError | None]:
    """Return the locations that the names alone give, or the error if they give none."""
    try:
        return locations.by_rule(adapter.modules, trained, disk, part=part), None
    except SourceError as error:
        return None, error
