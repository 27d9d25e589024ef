"""Recognize folders of training runs that have no weights file, and advise how to get one."""

from __future__ import annotations

import re
from pathlib import Path

from vbfmt.errors import SourceError

_CHECKPOINT = re.compile(r"checkpoint[-_](?P<step>\d+)")
_DEEPSPEED = re.compile(r"zero_to_fp32\.py|.*_(model|optim)_states\.pt")


def refusal(folder: Path) -> SourceError | None:
    """Return an error that says how to get weights from a folder, or None if its kind is
    unknown."""
    names = sorted(entry.name for entry in folder.iterdir())
    sharded = _sharded(folder, names)
    if sharded is not None:
        return SourceError(
            "a distributed checkpoint in shards, not a file of weights",
            file=sharded,
            expected="one file of weights",
            advice="python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
            f"{sharded} pytorch_model.bin, then pack that file",
        )
    if any(_DEEPSPEED.fullmatch(name) for name in names) or _is_deepspeed(folder, names):
        return SourceError(
            "a DeepSpeed checkpoint in partitions, not a file of weights",
            file=folder,
            expected="one file of weights",
            advice="run its zero_to_fp32.py (python zero_to_fp32.py . OUTPUT) and pack the output",
        )
    steps = [(int(match["step"]), name) for name in names if (match := _CHECKPOINT.fullmatch(name))]
    if steps:
        last = max(steps)[1]
        return SourceError(
            "the folder of a training run with several checkpoints",
            file=folder,
            found=", ".join(name for _, name in sorted(steps)[-5:]),
            expected="one checkpoint",
            advice=f"choose one: {folder / last}",
        )
    return None


def _sharded(folder: Path, names: list[str]) -> Path | None:
    """Return the folder that torch.distributed.checkpoint has written: this folder or a
    subfolder."""
    if any(name.endswith(".distcp") for name in names):
        return folder
    for name in names:
        inner = folder / name
        if inner.is_dir() and any(inner.glob("*.distcp")):
            return inner
    return None


def _is_deepspeed(folder: Path, names: list[str]) -> bool:
    inner = [folder / name for name in names if name.startswith("global_step")]
    return any(any(path.glob("*_states.pt")) for path in inner if path.is_dir())
