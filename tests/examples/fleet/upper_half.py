"""BERT MiniLM with its lower half precomputed, so that a run takes half of the time.

Adapters are in the upper three of the six blocks. The output of the lower three is the same for all
runs: it is computed once, without dropout, and saved in a file.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.data import train_minilm as task
from tests.data.train_minilm import Example, Split
from tests.examples.fleet.texts import split_of

ADAPTED = 3
PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Prepared(Example):
    """A sentence with the output of the lower blocks, (tokens, 384) float16."""

    hidden: Tensor


class _Nothing(nn.Module):
    """Replacement of a block whose output is precomputed."""

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden


class _Given(nn.Module):
    """Replacement of the embeddings, which returns the precomputed output."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.word_embeddings = embeddings.word_embeddings

    def forward(self, *, inputs_embeds: Tensor, **_: Any) -> Tensor:
        return inputs_embeds


def load_upper_half() -> PreTrainedModel:
    """Load MiniLM with a new head. Its layers have the same names as in the whole model."""
    model = task.load_base()
    model.bert.embeddings = _Given(model.bert.embeddings)
    blocks = model.bert.encoder.layer
    for number in range(len(blocks) - ADAPTED):
        blocks[number] = _Nothing()
    return model


def prepared_split(kind: str, sdist: Path, folder: Path) -> Split:
    """Return the three parts of one kind, with the output of the lower blocks. Read it from a file
    if there is one."""
    split = split_of(kind, sdist)
    path = folder / f"lower-half-{kind}.pt"
    if not path.exists():
        kept = {part: torch.cat(_lower_half_of(getattr(split, part))) for part in PARTS}
        partial = path.with_suffix(".partial")
        torch.save(kept, partial)
        partial.replace(path)
    hidden = torch.load(path, weights_only=True)
    return Split(*(_joined(getattr(split, part), hidden[part]) for part in PARTS))


def collate(batch: Sequence[Prepared]) -> tuple[dict[str, Tensor], Tensor]:
    """Pad to the longest sentence of the batch."""
    tokens, labels = task.collate(list(batch))
    hidden = nn.utils.rnn.pad_sequence([each.hidden.float() for each in batch], batch_first=True)
    return {"inputs_embeds": hidden, "attention_mask": tokens["attention_mask"]}, labels


@torch.inference_mode()
def _lower_half_of(examples: Sequence[Example]) -> list[Tensor]:
    model = task.load_base().eval()
    blocks = model.bert.encoder.layer
    model.bert.encoder.layer = blocks[: len(blocks) - ADAPTED]
    hidden = []
    for batch in task.in_order(list(examples)):
        inputs, _ = task.collate(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model.bert(**inputs).last_hidden_state.half()
        hidden += [row[: task.length(each)] for row, each in zip(output, batch, strict=True)]
    return hidden


def _joined(examples: Sequence[Example], hidden: Tensor) -> list[Example]:
    ends = itertools.accumulate(map(task.length, examples))
    return [
        Prepared(each.token_ids, each.label, hidden[end - task.length(each) : end])
        for each, end in zip(examples, ends, strict=True)
    ]
