"""The names of a module or tensor in an adapter, in the running model and in the base's files.

transformers renames tensors when it loads them (`transformers.conversion_mapping`), so a tensor may
have one name in the running model, where adapters take theirs from, and another on the disk; it
may be cut otherwise, too: the experts of a layer are one parameter of three dimensions.

Where a base is of a type that transformers loads as it is (`plain`), names differ by one prefix at
most, which is found from the names themselves (`rule`). For all others transformers is asked
(`running`), and `locations` says which tensors on the disk an adapter changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vbfmt.converters.lowrank import LowRank
from vbfmt.converters.names import locations, plain, running
from vbfmt.converters.names.locations import Locations
from vbfmt.converters.names.rule import SeveralPartsError
from vbfmt.converters.names.running import Shape
from vbfmt.errors import SourceError
from vbfmt.tensors import Tensor

_INSTALL = "pip install 'vbfmt[peft]' (transformers 5), which knows the names"
_CANNOT = "is this the base's own config? transformers cannot build the model from it"
_NOT_CHECKED = (
    "transformers renames tensors of this model and is not installed, or cannot build it: that the "
    "names in the base are the adapter's was not checked"
)


def locate(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    adapter: LowRank,
    *,
    part: str | None = None,
) -> Locations:
    """Find what an adapter changes in a base's files.

    Args:
        tensors: the base's, by their names on the disk.
        config: content of the base's ``config.json``.
        part: the prefix of the part of the base that the adapter changes, with or without the last
            dot, if several parts match.

    Raises:
        SourceError: not every module has a weight there.
    """
    disk = {name: tensor.shape for name, tensor in tensors.items()}
    trained = {name: tensor.shape for name, tensor in adapter.tensors.items()}
    kind = plain.kind_of(config, disk)
    if part is not None:
        part = f"{part.removesuffix('.')}."
    guess, error = _guess(adapter, trained, disk, part)
    if kind == "plain" and guess is not None and not guess.added:
        return dataclasses.replace(guess, ask=lambda: running.build(config, disk))
    model = running.build(config, disk)
    if model is not None:
        try:
            return locations.in_running(model, adapter.modules, trained, part=part)
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
    return _CANNOT if running.is_installed() else _INSTALL


def _guess(
    adapter: LowRank, trained: Mapping[str, Shape], disk: Mapping[str, Shape], part: str | None
) -> tuple[Locations | None, SourceError | None]:
    """Return the locations by names alone, or the error that says why there are none."""
    try:
        return locations.by_rule(adapter.modules, trained, disk, part=part), None
    except SourceError as error:
        return None, error
