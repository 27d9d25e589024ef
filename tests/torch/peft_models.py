"""Models like those of PEFT's own tests: an MLP, an embedding with a Conv1D layer, and a small
transformers model of each kind for which PEFT tests VB-LoRA."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.pytorch_utils import Conv1D

from tests.torch.models import llama
from vbfmt.torch import VBLoRAConfig, get_adapter_state_dict, inject, load_checkpoint

SMALL = {"vector_length": 1, "num_vectors": 5}
A = {"target_modules": ["lin0"], "vector_length": 2, "init_vector_bank_bound": 0.1}
B = {"target_modules": ["lin1"], "vector_length": 2, "init_vector_bank_bound": 0.1}
FELT = {"init_vector_bank_bound": 0.5, "init_logits_std": 1.0}


class MLP(nn.Module):
    """Layers with features 10 → 20 → 20 → 20 → 2; the two middle layers have the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.lin0 = nn.Linear(10, 20)
        self.lin1 = nn.Linear(20, 20)
        self.lin2 = nn.Linear(20, 20)
        self.lin3 = nn.Linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.lin0.weight.dtype)
        for layer in (self.lin0, self.lin1, self.lin2):
            x = torch.tanh(layer(x))
        return self.lin3(x).log_softmax(-1)


class Embedded(nn.Module):
    """An embedding, transformers' Conv1D and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(100, 5)
        self.conv1d = Conv1D(1, 5)
        self.lin0 = nn.Linear(10, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.lin0(torch.tanh(self.conv1d(self.emb(ids)).flatten(1)))


def made(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return kind()


# PEFT's rows of test_custom_models.py that name VBLoRA: model, settings.
CUSTOM: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "Vanilla MLP 1": (MLP, {"target_modules": "lin0", **SMALL}),
    "Vanilla MLP 2": (MLP, {"target_modules": ["lin0"], **SMALL}),
    "Vanilla MLP 3": (MLP, {"target_modules": ["lin1"], "vector_length": 2, "num_vectors": 5}),
    "Vanilla MLP 4": (MLP, {"target_modules": ["lin0", "lin1"], **SMALL}),
    "Vanilla MLP 5": (MLP, {"target_modules": ["lin0"], "modules_to_save": ["lin1"], **SMALL}),
    "Embedding + Conv1D 1": (
        Embedded,
        {"target_modules": ["conv1d"], "vector_length": 1, "num_vectors": 2},
    ),
}


def inputs(kind: type[nn.Module]) -> Tensor:
    ids = torch.arange(90).view(9, 10)
    return ids if kind is Embedded else ids.float() / 45 - 1


def ours(case: str, **settings: Any) -> tuple[nn.Module, Tensor]:
    """Return a model of `CUSTOM` with a new adapter that has an effect, and the model's input."""
    kind, own = CUSTOM[case]
    model = made(kind)
    torch.manual_seed(3)
    inject(model, VBLoRAConfig(**{**own, **FELT, **settings}))
    return model, inputs(kind)


def theirs(case: str, **settings: Any) -> peft.PeftModel:
    """Return the same base with PEFT's adapter and the same settings."""
    kind, own = CUSTOM[case]
    base = made(kind)
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(base, peft.VBLoRAConfig(**{**own, **FELT, **settings}))


def beside(case: str, folder: Path, **settings: Any) -> tuple[nn.Module, peft.PeftModel]:
    """Return vbfmt's and PEFT's model with the same values, loaded from PEFT's files."""
    other = theirs(case, **settings)
    other.save_pretrained(str(folder))
    model = made(CUSTOM[case][0])
    load_checkpoint(model, folder)
    return model, other


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(x)
    return result


def values(model: nn.Module, adapter_name: str | None = None) -> dict[str, Tensor]:
    """Return copies of an adapter's tensors."""
    state = get_adapter_state_dict(model, adapter_name)
    return {key: tensor.clone() for key, tensor in state.items()}


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


def t5() -> nn.Module:
    config = T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2,
        vocab_size=50, decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def _bert() -> BertConfig:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    return BertConfig(
        vocab_size=50, num_attention_heads=2, max_position_embeddings=32, num_labels=3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes,
    )  # fmt: skip


# PEFT's kinds of models: how one is made, its target layers, and the task.
KINDS: dict[str, tuple[Any, list[str], str]] = {
    "decoder": (llama, ["q_proj", "v_proj"], "CAUSAL_LM"),
    "encoder-decoder": (t5, ["q", "v"], "SEQ_2_SEQ_LM"),
    "features": (lambda: BertModel(_bert()), ["query", "value"], "FEATURE_EXTRACTION"),
    "classifier": (
        lambda: BertForSequenceClassification(_bert()),
        ["query", "value"],
        "SEQ_CLS",
    ),
}


def of_kind(kind: str, **settings: Any) -> nn.Module:
    """Return a small transformers model with a new adapter that has an effect."""
    model = base_of(kind)
    torch.manual_seed(3)
    inject(model, config_of(kind, **settings))
    return model


def base_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = KINDS[kind][0]()
    return made.eval()


def config_of(kind: str, **settings: Any) -> VBLoRAConfig:
    _, targets, task = KINDS[kind]
    sizes = {"vector_length": 1, "num_vectors": 2, "task_type": task}
    return VBLoRAConfig(**{"target_modules": targets, **sizes, **FELT, **settings})


def ids_of(kind: str) -> dict[str, Tensor]:
    """Return a batch of two sequences, the second with padding."""
    ids = torch.tensor([[4, 9, 3], [5, 7, 2]])
    given = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    return {**given, "decoder_input_ids": ids} if kind == "encoder-decoder" else given


def first(model: nn.Module, kind: str) -> Tensor:
    """Return the first tensor of the model's output."""
    result: Tensor = model(**ids_of(kind))[0]
    return result
