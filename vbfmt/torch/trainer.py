"""A callback of transformers' Trainer."""

from __future__ import annotations

import os
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vbfmt.errors import warn
from vbfmt.torch.packed import save_packed
from vbfmt.torch.sharding import takes_part

PACKED = "adapter.vblora"


class VBLoRACallback(TrainerCallback):
    """Write the packed adapter into every ``checkpoint-N``, as ``adapter.vblora``.

    Works with transformers' Trainer and Seq2SeqTrainer and with TRL's trainers:
    ``Trainer(…, callbacks=[VBLoRACallback()])``.

    Warns:
        VbfmtWarning: the Trainer writes its checkpoints elsewhere than into ``output_dir``.
    """

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Pack the active adapter into the checkpoint that the Trainer has just written."""
        folder = os.path.join(args.output_dir or "", f"checkpoint-{state.global_step}")
        first, model = state.is_world_process_zero, kwargs["model"]
        if first and not os.path.isdir(folder):  # in a search for hyperparameters
            warn(f"there is no {folder}, so {PACKED} was not written; pack the checkpoint instead")
            first = False
        if takes_part(model.parameters(), first=first):
            save_packed(model, os.path.join(folder, PACKED), overwrite=True)
