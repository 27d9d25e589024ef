"""The config of an adapter, and its conversion from and to PEFT's config."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any, cast

from vbfmt._math.admixture import LARGEST_BANK
from vbfmt.errors import ConfigError

ALL_LINEAR = "all-linear"
BIASES = ("none", "vblora_only", "all")
TASKS = (  # peft.TaskType, 0.13 to 0.21
    "CAUSAL_LM", "FEATURE_EXTRACTION", "QUESTION_ANS", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS",
)  # fmt: skip

Selection = Callable[..., Any]
"""(logits, k, training pass) → indices or None, and weights."""

_LISTS = ("target_modules", "exclude_modules", "modules_to_save")

COUNT = "a whole number, at least 1"
SPREAD = "a finite number, 0 or above"
"""What `is_count` and `is_spread` expect."""


@dataclass(frozen=True, kw_only=True)
class VBLoRAConfig:
    """The config of an adapter. Its fields have PEFT's names.

    Attributes:
        r: the rank, 4 in the paper.
        num_vectors: h, the bank's size; 90 (RoBERTa), 256 (GPT-2) or 2048 (Llama 2) in the paper;
            at most 65536, which is what a packed file can hold.
        vector_length: b, which must divide the features of every adapted layer; 256 in the paper.
        topk: k, the number of vectors that a sub-vector mixes; 2 in the paper.
        target_modules: the linear layers to adapt: a list of names (full names or their last
            components), one regular expression for full names, or ``"all-linear"``.
            ``"all-linear"`` leaves out the output embeddings and subclasses of `nn.Linear` that
            override `forward`, such as routers.
        exclude_modules: names, or a regular expression, of layers not to adapt.
        layers_to_transform: numbers of the blocks to adapt. The number of a layer's block is the
            last number in its name, or the number after `layers_pattern`.
        layers_pattern: names of the lists that contain the blocks, such as ``"layers"`` or ``"h"``.
        modules_to_save: names of modules to train fully and to save with the adapter, such as
            heads. The heads that PEFT adds for `task_type` need not be named.
        bias: biases to train: ``"none"``, ``"vblora_only"`` (of the adapted layers) or ``"all"``.
        rank_pattern: ranks of single modules: module name, last components or regular expression →
            rank. The first match is used. PEFT's VB-LoRA has one rank only.
        vblora_dropout: dropout on the input of the update.
        init_vector_bank_bound: the bank starts as U(−bound, bound).
        init_logits_std: the logits start as N(0, std²). The paper's Table 7 says N(0, 0.01);
            PEFT, by the same authors, takes 0.01 as the variance, so the default is 0.1.
        base_model_name_or_path, revision: the base model; by default, what the model itself
            records.
        task_type: one of PEFT's names (``SEQ_CLS``, ``CAUSAL_LM``, …), from which PEFT chooses a
            class. As in PEFT, modules whose names end in ``classifier`` or ``score`` (``SEQ_CLS``,
            ``TOKEN_CLS``) or in ``qa_outputs`` (``QUESTION_ANS``) are then fully trained.
        selection: a function that selects vectors during training; see `vbfmt.torch.strategies`. By
            default, selection is the same as in evaluation: the softmax of the k largest logits. It
            is not saved with an adapter.

    A field that may be None in PEFT may be None here; None then stands for the default. `inject`
    warns about entries of `target_modules`, `exclude_modules` and `rank_pattern` that match
    nothing; a name in `modules_to_save` that matches nothing is an error.

    Raises:
        ConfigError: a value is not valid.
    """

    r: int = 4
    num_vectors: int = 256
    vector_length: int = 256
    topk: int = 2
    target_modules: str | Collection[str] = ALL_LINEAR
    exclude_modules: str | Collection[str] = ()
    layers_to_transform: int | Collection[int] = ()
    layers_pattern: str | Collection[str] = ()
    modules_to_save: Collection[str] = ()
    bias: str = "none"
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    vblora_dropout: float = 0.0
    init_vector_bank_bound: float = 0.02
    init_logits_std: float = 0.1
    base_model_name_or_path: str | None = None
    revision: str | None = None
    task_type: str | None = None
    selection: Selection | None = None

    def __post_init__(self) -> None:
        defaults = {"target_modules": ALL_LINEAR, "rank_pattern": {}}
        for name in (*_LISTS, "layers_to_transform", "layers_pattern", "rank_pattern"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, defaults.get(name, ()))
        for name, (fits, expected) in _VALID.items():
            require_setting(fits(getattr(self, name)), name, getattr(self, name), expected)
        for key, rank in self.rank_pattern.items():
            require_setting(is_count(rank), f"rank_pattern {key!r}", rank, COUNT)
        require_setting(
            is_count(self.topk) and self.topk <= self.num_vectors,
            "topk",
            self.topk,
            f"1 to {self.num_vectors} (k ≤ h, num_vectors)",
        )

    @property
    def block_numbers(self) -> frozenset[int]:
        """`layers_to_transform` as a set, empty for all blocks."""
        numbers = self.layers_to_transform
        return frozenset([numbers] if isinstance(numbers, int) else numbers)

    @classmethod
    def from_peft(cls, config: object, *, layers_known: bool = False) -> VBLoRAConfig:
        """Return the same settings from PEFT's config. Ignore fields that have no meaning here.

        If the config has no ``target_modules``, they become ``"all-linear"``, the default here.
        PEFT would choose them by the model's type.

        Args:
            config: the content of ``adapter_config.json``, or PEFT's own object.
            layers_known: ignore the config's layer numbers, because the tensors of a checkpoint
                show which layers are adapted.

        Raises:
            ConfigError: the config describes another kind of adapter, or a value is not valid.
        """
        config = config.to_dict() if hasattr(config, "to_dict") else config
        if not isinstance(config, Mapping):
            raise ConfigError(
                "not a PEFT config",
                part="config",
                found=type(config).__name__,
                expected="peft.VBLoRAConfig, or the content of adapter_config.json",
            )
        kind = config.get("peft_type")
        if kind != "VBLORA":
            raise ConfigError(
                "another kind of adapter", part="peft_type", found=kind, expected="VBLORA"
            )
        known = {f.name: config.get(f.name) for f in fields(cls) if f.name != "selection"}
        if layers_known:
            known.update(layers_to_transform=None, layers_pattern=None)
        if "rank" in config and "rank_pattern" in config:  # as `as_peft` writes it
            known["r"] = config["rank"]
        return cls(**{name: value for name, value in known.items() if value is not None})

    def as_peft(self) -> dict[str, Any]:
        """Return the config in PEFT's form, for ``adapter_config.json``."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "selection"}
        for name in _LISTS:
            value = named[name]
            named[name] = value if isinstance(value, str) else sorted(value) or None
        if named["exclude_modules"] is None:
            del named["exclude_modules"]  # PEFT 0.13 does not know it and refuses the file
        for name in ("layers_to_transform", "layers_pattern"):
            value = named.pop(name)
            if value != ():
                named[name] = value if isinstance(value, int | str) else sorted(value)
        if not named.pop("rank_pattern"):
            return {"peft_type": "VBLORA", "inference_mode": True, **named}
        # PEFT has only one r. Without it, PEFT refuses the checkpoint instead of misreading it.
        ranks = {"rank": named.pop("r"), "rank_pattern": dict(self.rank_pattern)}
        return {"peft_type": "VBLORA", "inference_mode": True, **named, **ranks}


def require_config(config: object) -> None:
    """Check that `config` is a `VBLoRAConfig`, and not PEFT's class of the same name.

    Raises:
        ConfigError: `config` is of another class. The message says how to make one.
    """
    if isinstance(config, VBLoRAConfig):
        return
    kind = config if isinstance(config, type) else type(config)
    advice = "make one: VBLoRAConfig(r=…, num_vectors=…, vector_length=…)"
    if kind is not config and hasattr(config, "peft_type") and hasattr(config, "to_dict"):
        advice = "this is PEFT's class: give VBLoRAConfig.from_peft(config)"
    elif isinstance(config, Mapping):
        make = (
            "VBLoRAConfig.from_peft(config)" if "peft_type" in config else "VBLoRAConfig(**config)"
        )
        advice = f"give {make}"
    raise ConfigError(
        "not a config of this library",
        part="config",
        found=f"{'the class ' if kind is config else ''}{kind.__module__}.{kind.__qualname__}",
        expected=f"{VBLoRAConfig.__module__}.VBLoRAConfig",
        advice=advice,
    )


def require_setting(fits: bool, name: str, value: object, expected: str) -> None:
    """Check that a setting's value `fits`.

    Raises:
        ConfigError: it does not. The message has the name, the value and what is expected.
    """
    if not fits:
        raise ConfigError("a setting is not valid", part=name, found=repr(value), expected=expected)


def is_count(value: object) -> bool:
    """Return whether `value` is a whole number, at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_index(value: object) -> bool:
    """Return whether `value` is a whole number, at least 0."""
    return is_count(value) or (value == 0 and type(value) is int)


def is_number(value: object) -> bool:
    """Return whether `value` is a number. NaN and infinity count."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_spread(value: object) -> bool:
    """Return whether `value` can be a standard deviation or bound of random numbers."""
    return is_number(value) and 0 <= cast(float, value) < inf


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _are_names(value: object) -> bool:
    texts = isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)
    return texts and all(isinstance(name, str) for name in cast(Collection[object], value))


def _is_name_or_names(value: object) -> bool:
    return isinstance(value, str) or _are_names(value)


def _are_block_numbers(value: object) -> bool:
    listed = isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)
    each = list(cast("Collection[object]", value)) if listed else [value]
    return all(map(is_index, each))


_VALID: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (is_count, COUNT),
    "num_vectors": (
        lambda h: is_count(h) and h <= LARGEST_BANK,
        f"1 to {LARGEST_BANK} (what a packed file can hold)",
    ),
    "vector_length": (is_count, COUNT),
    "target_modules": (_is_name_or_names, "a list of names, or one regular expression"),
    "exclude_modules": (_is_name_or_names, "a list of names, or one regular expression"),
    "layers_to_transform": (_are_block_numbers, "numbers of layers, from 0"),
    "layers_pattern": (_is_name_or_names, "a name, or a list of names"),
    "modules_to_save": (_are_names, "a list of names"),
    "bias": (lambda bias: bias in BIASES, " or ".join(BIASES)),
    "rank_pattern": (
        lambda ranks: isinstance(ranks, Mapping) and _are_names([*ranks]),
        "module names with their ranks",
    ),
    "vblora_dropout": (lambda p: is_number(p) and 0 <= p < 1, "0 ≤ p < 1"),
    "init_vector_bank_bound": (is_spread, SPREAD),
    "init_logits_std": (is_spread, SPREAD),
    "base_model_name_or_path": (_is_text, "text"),
    "revision": (_is_text, "text"),
    "task_type": (lambda task: task in (None, *TASKS), " or ".join(TASKS)),
    "selection": (lambda function: function is None or callable(function), "a function, or None"),
}
"""Field of `VBLoRAConfig` → whether a value is valid, and what is expected."""
