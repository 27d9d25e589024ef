"""A base model without its weights, for what only its modules' order and shapes can tell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vbfmt.errors import MissingExtraError, SourceError

_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
"""PEFT's task types → transformers' classes, as PEFT's own Auto classes have them."""


def shapes_in_order(
    config: Mapping[str, Any], base: str | os.PathLike[str]
) -> dict[str, tuple[int, int]]:
    """Name → (in_features, out_features) of the modules that PEFT adapts, in the base's order.

    PEFT itself puts its layers into the base, which stands on torch's meta device.

    Args:
        config: a PEFT adapter config.
        base: the base model's folder; its config.json is read, no code of it is run.

    Raises:
        MissingExtraError: peft or transformers is missing.
        SourceError: they cannot build it.
    """
    try:
        import torch
        import transformers
        from peft import PeftConfig, get_peft_model
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        raise MissingExtraError.of("the modules' order needs PEFT", "peft") from None
    if not os.path.isfile(os.path.join(base, "config.json")):
        raise SourceError("no base model", part="--base", found=base, expected="a config.json")
    try:
        model_config = transformers.AutoConfig.from_pretrained(
            os.fspath(base),
            trust_remote_code=False,  # else it would ask, and a yes would run it
        )
        task = config.get("task_type")
        names = model_config.architectures
        own = getattr(transformers, names[0], None) if names else None
        build = getattr(transformers, _CLASSES.get(str(task), "AutoModel"))
        with torch.device("meta"):
            if task is None and own is not None:
                model = own(model_config)
            else:
                model = build.from_config(model_config)
        settings = {key: value for key, value in config.items() if key != "auto_mapping"}
        peft_config: PeftConfig = PeftConfig.from_peft_type(**settings)  # type: ignore[no-untyped-call]
        adapted: Any = get_peft_model(model, peft_config, low_cpu_mem_usage=True)
    except Exception as error:  # noqa: BLE001 - whatever a strange config provokes in there
        # A long path would crowd out the message.
        reason = str(error).replace(os.fspath(base), os.path.basename(os.path.normpath(base)))
        raise SourceError(
            "PEFT cannot build the adapter on this base",
            part="--base",
            found=f"{type(error).__name__}: {reason[:100]}",
        ) from None
    result = {}
    for name, module in adapted.base_model.model.named_modules():
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            result[name] = (int(layer.in_features), int(layer.out_features))
    return result
