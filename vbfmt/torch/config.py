"""How an adapter is made: sizes, targets, initialisation. And the same as PEFT writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from vbfmt.errors import ConfigError

ALL_LINEAR = "all-linear"
BIASES = ("none", "vblora_only", "all")

_PEFT_NAMES = {
    "rank": "r",
    "dropout": "vblora_dropout",
    "init_bank_bound": "init_vector_bank_bound",
    "base_model": "base_model_name_or_path",
    "base_revision": "revision",
}


@dataclass(frozen=True, kw_only=True)
class VBLoRAConfig:
    """What to adapt, and with what.

    Attributes:
        rank: r, 4 in the paper.
        num_vectors: h, the bank's size; 90 (RoBERTa), 256 (GPT-2) or 2048 (Llama 2) in the paper.
        vector_length: b, which must divide the features of every adapted layer; 256 in the paper.
        topk: k, how many vectors a sub-vector mixes; 2 in the paper.
        target_modules: which linear layers: names (whole, or the last components), one regular
            expression for whole names, or ``"all-linear"``: all but the output embeddings.
        exclude_modules: names or a regular expression of layers to leave alone.
        modules_to_save: names of modules to train whole (heads), kept with the adapter.
        bias: biases to train: ``"none"``, ``"vblora_only"`` (of the adapted layers) or ``"all"``.
        rank_pattern: module name, last components or regular expression → its own rank. The first
            that matches counts. PEFT's VB-LoRA knows one rank only.
        dropout: on the input of the update.
        init_bank_bound: the bank starts as U(−bound, bound).
        init_logits_std: the logits start as N(0, std²). The paper's Table 7 says N(0, 0.01);
            PEFT, by the same authors, takes that for the variance: 0.1.
        base_model, base_revision: what was adapted; filled in from the model where it knows.
        task_type: as PEFT names it (``SEQ_CLS``, ``CAUSAL_LM``, …); PEFT needs it to pick a class.

    Raises:
        ConfigError: a value that cannot work.
    """

    rank: int = 4
    num_vectors: int = 256
    vector_length: int = 256
    topk: int = 2
    target_modules: str | Sequence[str] = ALL_LINEAR
    exclude_modules: str | Sequence[str] = ()
    modules_to_save: Sequence[str] = ()
    bias: str = "none"
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    dropout: float = 0.0
    init_bank_bound: float = 0.02
    init_logits_std: float = 0.1
    base_model: str | None = None
    base_revision: str | None = None
    task_type: str | None = None

    def __post_init__(self) -> None:
        ranks = {"rank": self.rank}
        ranks.update((f"rank_pattern {key!r}", rank) for key, rank in self.rank_pattern.items())
        sizes = {**ranks, "num_vectors": self.num_vectors, "vector_length": self.vector_length}
        for what, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ConfigError(f"{what} is out of range", found=size, expected="at least 1")
        if not isinstance(self.topk, int) or not 1 <= self.topk <= self.num_vectors:
            raise ConfigError(
                "k is out of range",
                part="topk",
                found=self.topk,
                expected=f"1 to {self.num_vectors} (h, num_vectors)",
            )
        if self.bias not in BIASES:
            raise ConfigError("unknown bias", found=self.bias, expected=" or ".join(BIASES))
        if not 0 <= self.dropout < 1:
            raise ConfigError("dropout is out of range", found=self.dropout, expected="0 ≤ p < 1")

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> VBLoRAConfig:
        """The same from PEFT's ``adapter_config.json``; what has no meaning here is left out.

        Raises:
            ConfigError: another kind of adapter, or a value that cannot work.
        """
        kind = config.get("peft_type")
        if kind != "VBLORA":
            raise ConfigError(
                "another kind of adapter", part="peft_type", found=kind, expected="VBLORA"
            )
        known = {f.name: config.get(_PEFT_NAMES.get(f.name, f.name)) for f in fields(cls)}
        return cls(**{name: value for name, value in known.items() if value is not None})

    def as_peft(self) -> dict[str, Any]:
        """The config as PEFT's VBLoRAConfig has it, for ``adapter_config.json``."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        named = {_PEFT_NAMES.get(name, name): value for name, value in own.items()}
        lists = ("target_modules", "exclude_modules", "modules_to_save")
        for name in lists:
            value = named[name]
            named[name] = value if isinstance(value, str) else sorted(value) or None
        if not named.pop("rank_pattern"):
            return {"peft_type": "VBLORA", "inference_mode": True, **named}
        # PEFT has one r: without it, it refuses the checkpoint instead of misreading it.
        del named["r"]
        ranks = {"rank": self.rank, "rank_pattern": dict(self.rank_pattern)}
        return {"peft_type": "VBLORA", "inference_mode": True, **named, **ranks}
