"""Load a packed adapter into a model in memory, with PEFT's public functions."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

from vbfmt._files import PathLike
from vbfmt.converters.lowrank import LowRank
from vbfmt.converters.names import loaded_model
from vbfmt.converters.peft.loaded import require_lora_loaded, require_vblora_loaded
from vbfmt.converters.peft.renamed import renamed
from vbfmt.errors import MissingExtraError, TargetError, in_file

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn


def load_adapter(
    model: nn.Module,
    path: PathLike,
    *,
    adapter_name: str = "default",
    form: str = "lora",
) -> PeftModel:
    """Load the adapter in a ``.vblora`` file into a model, and activate it for inference.

    Args:
        model: a transformers model, or a PeftModel, to which the adapter is added.
        path: the packed file.
        adapter_name: PEFT's name for the adapter.
        form: ``lora`` (exact factors) or ``vblora`` (PEFT's own VB-LoRA layers).

    Returns:
        The PeftModel that wraps `model`, or `model` itself if it is a PeftModel. It is in
        evaluation mode.

    Raises:
        TargetError: the form is unknown; `model` is not a module or has an adapter with that name;
            the model lacks a module of the adapter (which PEFT silently ignores); PEFT has not
            loaded the adapter's values; or the model's dtype cannot represent a trained head.
        MissingExtraError: PEFT is not installed.
        VbfmtError: the file is damaged or cannot be read.
    """
    import tempfile

    try:
        from peft import PeftModel
    except ImportError:
        raise MissingExtraError.of("loading into a model needs PEFT", "peft") from None

    from vbfmt.converters import lora
    from vbfmt.converters.peft import folder as peft
    from vbfmt.packed import load

    writers: dict[str, Any] = {"lora": lora.write, "vblora": peft.write}
    if form not in writers:
        raise TargetError("unknown form", found=form, expected="lora or vblora")
    _require_can_add(model, adapter_name)
    adapter = load(path)
    bare: Any = model.base_model.model if isinstance(model, PeftModel) else model
    given: Any = adapter if form == "vblora" else renamed(adapter, bare)
    _require_modules(bare, given, path)
    options = {} if form == "vblora" else {"experts": loaded_model.has_experts(bare)}
    # On Windows, files that are still mapped cannot be removed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        written = os.path.join(folder, "adapter")
        writers[form](given, written, **options)
        loaded = _loaded(model, written, adapter_name, path)
    with in_file(path):
        if form == "lora":
            require_lora_loaded(loaded, given, adapter_name)
        else:
            require_vblora_loaded(loaded, adapter, adapter_name)
    return loaded.eval()


def _loaded(model: nn.Module, written: str, adapter_name: str, path: PathLike) -> PeftModel:
    from peft import PeftModel

    try:
        if isinstance(model, PeftModel):
            model.load_adapter(written, adapter_name=adapter_name)
            model.set_adapter(adapter_name)
            return model
        with warnings.catch_warnings():
            # PEFT warns about factors that it has lost; `require_lora_loaded` restores them.
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            return PeftModel.from_pretrained(model, written, adapter_name=adapter_name)
    except (ValueError, NotImplementedError) as error:
        raise TargetError(
            "PEFT refuses the adapter",
            file=path,
            found=str(error).partition("\n")[0],
            advice="load it with form='vblora', or merge it into its base",
        ) from None


def _require_can_add(model: nn.Module, name: str) -> None:
    """Refuse an object that is not a model, and a name that PEFT does not allow or that exists."""
    from torch import nn

    if not isinstance(model, nn.Module):
        raise TargetError(
            "not a model",
            found=type(model).__name__,
            expected="a transformers model, or a PeftModel",
            advice="the arguments are the model, then the file",
        )
    if not isinstance(name, str) or not name or "." in name:
        raise TargetError(
            "not a name for an adapter", found=repr(name), expected="text without a full stop"
        )
    if name in getattr(model, "peft_config", {}):
        raise TargetError(
            "the model has an adapter of that name",
            found=name,
            advice="choose another adapter_name, or remove that one first: model.delete_adapter",
        )


def _require_modules(bare: Any, adapter: LowRank, path: PathLike) -> None:
    """Refuse a model that lacks a module of the adapter, or has it with another shape."""
    modules: dict[str, Any] = dict(bare.named_modules())
    for module in adapter.modules:
        found = modules.get(module.name)
        shape = getattr(getattr(found, "weight", None), "shape", None)
        wanted = (module.out_features, module.in_features)
        if shape is None or (tuple(shape) not in (wanted, wanted[::-1]) and len(shape) == 2):
            raise TargetError(
                "the model does not fit the adapter",
                file=path,
                part=module.name,
                found="no such module" if shape is None else tuple(shape),
                expected=wanted,
                advice="is it the right base?",
            )
