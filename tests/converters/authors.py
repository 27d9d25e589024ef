"""A reimplementation of the authors' NLU models, which computes and saves as their code does.

After leo-yangli/VB-LoRA: NLU/vblora/vblora.py for the layer, RobertaModel.__init__ of
NLU/NLU/src/transformers/models/roberta/modeling_roberta.py for the tied bank.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
H, B, K, RANK = 12, 8, 3, 4
"""In every module except the feed-forward ones, in_features / b = 4 = rank, so the shapes of both
layouts are the same."""

PLACES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "intermediate": "intermediate.dense",
    "layer.output": "output.dense",
    "attention.output": "attention.output.dense",
}
"""Their ``vb_module`` words → name of the layer within an encoder layer."""


class VBLinear(nn.Linear):
    """A linear layer that adds x·A·B, both factors composed from logits of (tiles, rank, h)."""

    def __init__(self, linear: nn.Linear, bank: nn.Parameter, rank: int, k: int) -> None:
        super().__init__(linear.in_features, linear.out_features)
        self.load_state_dict(linear.state_dict())
        h, b = bank.shape
        self.vector_bank = bank
        self.logits_A = nn.Parameter(torch.randn(linear.in_features // b, rank, h))
        self.logits_B = nn.Parameter(torch.randn(linear.out_features // b, rank, h))
        self.k = k

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A (in, rank) and B (rank, out)."""
        a, b = self._composed(self.logits_A), self._composed(self.logits_B)
        rank = a.shape[1]
        return a.transpose(1, 2).reshape(-1, rank), b.transpose(0, 1).reshape(rank, -1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.factors()
        return super().forward(x) + x @ a @ b

    def _composed(self, logits: torch.Tensor) -> torch.Tensor:
        top, chosen = torch.topk(logits, self.k, dim=-1)
        weights = torch.softmax(top, dim=-1)[..., None]
        return torch.sum(weights * self.vector_bank[chosen], dim=-2)


def base_model() -> RobertaForSequenceClassification:
    torch.manual_seed(0)
    return RobertaForSequenceClassification(RobertaConfig(**SIZES)).eval()


def model(words: str = ",".join(PLACES), *, rank: int = RANK) -> RobertaForSequenceClassification:
    """Return the base with their layers and a changed head."""
    result = base_model()
    torch.manual_seed(1)
    bank = nn.Parameter(torch.empty(H, B).uniform_(-0.5, 0.5))
    result.roberta.vector_bank = bank
    for layer in result.roberta.encoder.layer:
        for word in words.split(","):
            owner, _, leaf = PLACES[word].rpartition(".")
            parent = layer.get_submodule(owner)
            setattr(parent, leaf, VBLinear(getattr(parent, leaf), bank, rank, K))
    for parameter in result.classifier.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return result.eval()


def saved(folder: Path, vb: PreTrainedModel, **config: object) -> Path:
    """Save as their ``trainer.save_model`` does: everything in one pickle, and the config."""
    folder.mkdir(exist_ok=True)
    torch.save(vb.state_dict(), folder / "pytorch_model.bin")
    written = {
        "_name_or_path": "roberta-tiny",
        "architectures": [type(vb).__name__],
        "num_hidden_layers": SIZES["num_hidden_layers"],
        "num_vectors": H,
        "vector_length": B,
        "rank": RANK,
        "topk": K,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def deberta(rank: int = RANK) -> DebertaV2ForSequenceClassification:
    """Return a DeBERTa with their layers. Their published code does not do this; it is made as for
    RoBERTa."""
    torch.manual_seed(0)
    sizes = {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    result = DebertaV2ForSequenceClassification(DebertaV2Config(**sizes))
    bank = nn.Parameter(torch.empty(H, B).uniform_(-0.5, 0.5))
    result.deberta.vector_bank = bank
    for layer in result.deberta.encoder.layer:
        attention = layer.attention.self
        for leaf in ("query_proj", "value_proj"):
            setattr(attention, leaf, VBLinear(getattr(attention, leaf), bank, rank, K))
    return result.eval()
