"""A packed adapter straight into a live model, through PEFT's public functions."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

from vbfmt.adapter import Adapter
from vbfmt.errors import TargetError

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn

PathLike = str | os.PathLike[str]


def load_adapter(
    model: nn.Module,
    path: PathLike,
    *,
    adapter_name: str = "default",
    form: str = "lora",
) -> PeftModel:
    """The model with the adapter of a ``.vblora`` file in it, active and for inference.

    Args:
        model: a transformers model, or a PeftModel that gets one adapter more.
        path: the packed file.
        adapter_name: PEFT's name for it.
        form: ``lora`` (exact factors) or ``vblora`` (PEFT's own VB-LoRA layers).

    Returns:
        PEFT's model around `model`.

    Raises:
        TargetError: unknown form, or a module of the adapter that the model does not have, which
            PEFT would pass over in silence.
        VbfmtError: the file is damaged or cannot be read.
    """
    from peft import PeftModel

    from vbfmt.converters import lora
    from vbfmt.converters.peft import folder as peft
    from vbfmt.packed import load

    writers: dict[str, Any] = {"lora": lora.write, "vblora": peft.write}
    if form not in writers:
        raise TargetError("unknown form", found=form, expected="lora or vblora")
    adapter = load(path)
    _require_modules(model, adapter, path)
    with tempfile.TemporaryDirectory() as folder:
        written = os.path.join(folder, "adapter")
        writers[form](adapter, written)
        if isinstance(model, PeftModel):
            model.load_adapter(written, adapter_name=adapter_name)
            model.set_adapter(adapter_name)
            return model.eval()
        return PeftModel.from_pretrained(model, written, adapter_name=adapter_name).eval()


def _require_modules(model: nn.Module, adapter: Adapter, path: PathLike) -> None:
    from peft import PeftModel

    bare: Any = model.base_model.model if isinstance(model, PeftModel) else model
    modules: dict[str, Any] = dict(bare.named_modules())
    for module in adapter:
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
