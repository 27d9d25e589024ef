"""Write model cards for the Hub: the README.md of a repository, with metadata for the Hub.

huggingface_hub's ModelCardData writes the metadata. The Hub's documentation of model cards explains
its fields: ``base_model``, ``base_model_relation``, ``library_name``, ``pipeline_tag``, ``tags``.
"""

from __future__ import annotations

from collections.abc import Sequence

from vbfmt._files import peft_layout
from vbfmt.adapter import Adapter
from vbfmt.converters.hub.repository import is_model_name
from vbfmt.converters.lowrank import LowRank
from vbfmt.errors import MissingExtraError, printable

NAME = "README.md"

_PIPELINES = {
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}
"""PEFT's task types → the Hub's ``pipeline_tag``."""

_PAPER = "[VB-LoRA](https://arxiv.org/abs/2405.15179)"


def packed(adapter: Adapter, file: str, digest: str) -> bytes:
    """Return the card for a repository with a packed file.

    Args:
        adapter: the packed adapter.
        file: the file's name.
        digest: the adapter's digest, ``sha256:…``.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
    """
    file = printable(file)
    return _card(
        adapter,
        "vbfmt",
        ["vb-lora"],
        f"A {_PAPER} adapter{_of(adapter)}, packed in `{file}`: {_sizes(adapter)}, a bank of "
        f"{adapter.h} vectors of length {adapter.b}, {adapter.k} of them in each sub-vector.",
        "```python",
        "from vbfmt.converters import peft",
        "",
        f"model = peft.load_adapter(base, {file!r})  # base: a transformers model",
        "```",
        "",
        f"`vbfmt verify {file} --digest {digest}` checks every byte.",
    )


def vblora(adapter: Adapter) -> bytes:
    """Return the card for a PEFT VB-LoRA folder. Errors are those of `packed`."""
    return _card(
        adapter,
        "peft",
        ["vb-lora"],
        f"A {_PAPER} adapter{_of(adapter)} in PEFT's top-k form: {_sizes(adapter)}.",
        *_WITH_PEFT,
    )


def lora(adapter: LowRank, library: str) -> bytes:
    """Return the card for a LoRA folder for the library ``peft`` or ``mlx``. Errors are those of
    `packed`."""
    use = _WITH_PEFT if library == "peft" else _WITH_MLX
    return _card(
        adapter,
        library,
        ["lora", "vb-lora"],
        f"A LoRA{_of(adapter)}, expanded from {_PAPER}: {_sizes(adapter)}.",
        *use,
    )


def merged(adapter: LowRank, base_model: str | None, digests: Sequence[str]) -> bytes:
    """Return the card for a model that adapters were merged into. Errors are those of `packed`.

    Args:
        adapter: the merged sum.
        base_model: the base model's name on the Hub, if known.
        digests: the digests of the packed adapters.
    """
    name = base_model if base_model and is_model_name(base_model) else None
    into = f" into `{name}`" if name else ""
    return _card(
        adapter,
        "transformers",
        ["vb-lora"],
        f"A model with {_PAPER} merged{into}: {_sizes(adapter)}.",
        "The packed adapters: " + ", ".join(f"`{digest}`" for digest in digests) + ".",
        base_model=name,
        relation=None,
    )


_WITH_PEFT = (
    "```python",
    "from peft import PeftModel",
    "",
    "model = PeftModel.from_pretrained(base, FOLDER)  # base: a transformers model",
    "```",
)
_WITH_MLX = ("```", "mlx_lm.generate --model BASE --adapter-path FOLDER", "```")


def _card(
    adapter: LowRank,
    library: str,
    tags: list[str],
    what: str,
    *more: str,
    base_model: str | None = None,
    relation: str | None = "adapter",
) -> bytes:
    try:
        from huggingface_hub import ModelCardData
    except ImportError:
        raise MissingExtraError.of("a model card needs huggingface_hub", "hub") from None
    base = base_model or _base(adapter)
    task = peft_layout.config_of(adapter).get("task_type")
    data = ModelCardData(
        base_model=base,
        base_model_relation=relation if base else None,
        library_name=library,
        pipeline_tag=_PIPELINES.get(str(task)),
        tags=tags,
    )
    return "\n".join(["---", data.to_yaml(), "---", "", what, "", *more, ""]).encode()


def _base(adapter: LowRank) -> str | None:
    """Return the base's name if it is valid on the Hub, else None, because the Hub refuses other
    names."""
    name = adapter.base_model
    return name if name and is_model_name(name) else None


def _of(adapter: LowRank) -> str:
    base = _base(adapter)
    return f" of `{base}`" if base else ""


def _sizes(adapter: LowRank) -> str:
    ranks = sorted({module.rank for module in adapter.modules})
    span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    return f"{len(adapter.modules)} modules of rank {span}"
