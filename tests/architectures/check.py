"""Check one architecture: pack, merge, expand and load PEFT's adapter, and compare each step with
PEFT."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import peft
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.architectures import tiny
from vbfmt import save
from vbfmt.converters import merge, read
from vbfmt.converters import peft as ours
from vbfmt.converters.operations.expand import expand
from vbfmt.errors import VbfmtError

MOST_PARAMETERS = 6_000_000
TOLERANCE = 1e-4
_MOST_MODULES = 24
_HEADS = ("classifier", "score", "classification_head", "gate", "router")

State = dict[str, torch.Tensor]


class NotComparableError(Exception):
    """Transformers or PEFT fails without vbfmt, so there is nothing to compare."""


@dataclass(frozen=True)
class Result:
    """The result for an architecture.

    Attributes:
        name: name of its class.
        task: the task of that class.
        steps: step → ``equal``, ``refused: …``, ``failed: …`` or ``wrong: …``.
        modules: number of adapted modules.
        without: why there is nothing to compare, or "".
    """

    name: str
    task: str
    steps: dict[str, str]
    modules: int = 0
    without: str = ""


def check(task: str, name: str, folder: str) -> Result:
    """Build the model, adapt it with PEFT, and compare every step."""
    try:
        model, built = _base(name, folder)
        adapted = _adapted(model, built, folder)
        count = sum(hasattr(part, "vblora_logits_A") for part in adapted.modules())
        wanted = _state(adapted.merge_and_unload())
        del adapted, model
        _control(built, folder, wanted)
    except Exception as error:  # noqa: BLE001 - of transformers or PEFT
        return Result(name, task, {}, without=_short(error))
    steps = {}
    packed = os.path.join(folder, "x.vblora")
    steps["pack"] = _outcome(lambda: _pack(folder, packed))
    if steps["pack"] == "equal":
        for step, function in (
            ("merge", lambda: _merged(built, folder)),
            ("expand", lambda: _expanded(built, folder)),
            ("load", lambda: _loaded(built, folder)),
        ):
            steps[step] = _outcome(lambda function=function: _difference(function(), wanted))
    return Result(name, task, steps, count)


Build = Callable[[], nn.Module]


def _base(name: str, folder: str) -> tuple[nn.Module, Build]:
    cls = getattr(transformers, name)
    config = tiny.config(cls.config_class)
    with torch.device("meta"):
        size = sum(p.numel() for p in cls(config).parameters())
    if size > MOST_PARAMETERS:
        raise NotComparableError(f"{size / 1e6:.1f} million parameters")
    torch.manual_seed(0)
    model = cls(config)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = torch.randn_like(parameter.data) * 0.02
    model.tie_weights()
    path = os.path.join(folder, "base")
    model.save_pretrained(path)

    def build() -> nn.Module:
        result: nn.Module = cls.from_pretrained(path)
        return result

    again = _state(build())
    if bad := _unequal(again, _state(model)):
        raise NotComparableError(f"transformers does not load the weights that it saved: {bad[0]}")
    return build(), build


def _adapted(model: nn.Module, build: Build, folder: str) -> Any:
    names, b = _targets(model)
    if not names:
        raise NotComparableError("no linear layer of a size that VB-LoRA takes")
    heads = _heads(model, names)
    torch.manual_seed(1)
    for bias, saved in (("all", heads), ("none", heads), ("none", [])):
        config = peft.VBLoRAConfig(
            r=2,
            num_vectors=16,
            vector_length=b,
            target_modules=names,
            init_vector_bank_bound=0.5,
            bias=bias,
            modules_to_save=saved or None,
            fan_in_fan_out=isinstance(model.get_submodule(names[0]), Conv1D),
        )
        try:
            adapted = peft.get_peft_model(model, config)
            break
        except Exception:
            if not saved:
                raise
            model = build()
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "vblora_logits" not in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(os.path.join(folder, "adapter"), save_embedding_layers=False)
    return adapted


def _targets(model: nn.Module) -> tuple[list[str], int]:
    """Return linear layers of every kind, all with the same orientation, and a vector length that
    fits them."""
    output = _output(model)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not output
    }
    sizes = {name: sorted(module.weight.shape) for name, module in layers.items()}
    for b in (16, 8, 4):
        fit = [name for name, size in sizes.items() if all(each % b == 0 for each in size)]
        if 2 * len(fit) > len(sizes):
            break
    turned = [name for name in fit if isinstance(layers[name], Conv1D)]
    fit = turned or fit
    by_kind: dict[str, list[str]] = {}
    for name in fit:
        by_kind.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    chosen: list[str] = []
    for turn in range(2):
        chosen += [names[-1 - turn] for names in by_kind.values() if len(names) > turn]
    return sorted(chosen[:_MOST_MODULES]), b


def _output(model: nn.Module) -> nn.Module | None:
    try:
        return model.get_output_embeddings()
    except (NotImplementedError, AttributeError):
        return None


def _heads(model: nn.Module, targets: list[str]) -> list[str]:
    """Return heads and routers to train fully (`modules_to_save`)."""
    found = set()
    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        inside = any(t == name or t.startswith(f"{name}.") for t in targets)
        if leaf in _HEADS and not inside and list(module.parameters(recurse=False)):
            found.add(leaf)
    return sorted(leaf for leaf in found if not any(t.split(".")[-1] == leaf for t in targets))


def _control(build: Build, folder: str, wanted: State) -> None:
    path = os.path.join(folder, "adapter")
    found = _state(peft.PeftModel.from_pretrained(build(), path).merge_and_unload())
    if bad := _unequal(found, wanted):
        raise NotComparableError(f"PEFT does not load the weights that it saved: {bad[0]}")


def _pack(folder: str, packed: str) -> str:
    save(read(os.path.join(folder, "adapter")), packed, overwrite=True)
    return "equal"


def _merged(build: Build, folder: str) -> State:
    base, out = os.path.join(folder, "base"), os.path.join(folder, "merged")
    merge.write(merge.plan(read(os.path.join(folder, "adapter")), base), out)
    kept = os.path.join(folder, "kept")
    os.rename(base, kept)
    try:
        os.rename(out, base)
        return _state(build())
    finally:
        shutil.rmtree(base, ignore_errors=True)
        os.rename(kept, base)


def _expanded(build: Build, folder: str) -> State:
    path = os.path.join(folder, "lora")
    expand(os.path.join(folder, "adapter"), path, base=os.path.join(folder, "base"))
    return _state(peft.PeftModel.from_pretrained(build(), path).merge_and_unload())


def _loaded(build: Build, folder: str) -> State:
    return _state(ours.load_adapter(build(), os.path.join(folder, "x.vblora")).merge_and_unload())


def _state(model: Any) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _unequal(found: State, wanted: State) -> list[str]:
    return [
        name
        for name, tensor in wanted.items()
        if name not in found
        or found[name].shape != tensor.shape
        or not torch.allclose(
            found[name].float(), tensor.float(), atol=TOLERANCE, rtol=0, equal_nan=True
        )
    ]


def _difference(found: State, wanted: State) -> str:
    bad = _unequal(found, wanted)
    return f"wrong: {len(bad)} tensors, {', '.join(bad[:2])}" if bad else "equal"


def _outcome(step: Callable[[], str]) -> str:
    try:
        return step()
    except VbfmtError as error:
        return f"refused: {error}"
    except Exception as error:  # noqa: BLE001 - of transformers or PEFT
        return f"failed: {_short(error)}"


def _short(error: Exception) -> str:
    text = (
        str(error) if isinstance(error, NotComparableError) else f"{type(error).__name__}: {error}"
    )
    return re.sub(r"\s+", " ", text)[:200]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and warnings."""
    transformers.logging.set_verbosity(50)
    transformers.logging.disable_progress_bar()
    yield
