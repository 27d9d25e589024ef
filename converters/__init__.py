"""Foreign formats, one file or small package each; `read` finds out which one a source is.

`READERS` is the table of what is read, `WRITERS` that of the forms that an adapter is expanded to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vbfmt._files import peft_layout

if TYPE_CHECKING:
    from pathlib import Path

    from vbfmt.adapter import Adapter
    from vbfmt.converters._files.checkpoint import Checkpoint
    from vbfmt.converters.lowrank import LowRank

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Reader:
    """One foreign format that is read, in ``vbfmt.converters.<name>``.

    Attributes:
        name: as ``--layout`` takes it.
        what: in words.
        claims: whether a state dict with these keys could be of this format.
        config: the file beside the weights that it reads, if there is one.
        wants_base: whether the base model's folder may be needed.
    """

    name: str
    what: str
    claims: Callable[[Collection[str]], bool]
    config: str | None = peft_layout.CONFIG
    wants_base: bool = False


def _peft(keys: Collection[str]) -> bool:
    return any("vblora_vector_bank" in key or "vblora_logits_" in key for key in keys)


def _nlu(keys: Collection[str]) -> bool:
    return _algorithm1(keys) or (_bare(keys) and _with_copies(keys))


def _algorithm1(keys: Collection[str]) -> bool:
    return _bare(keys) and not _with_copies(keys)


def _unilora(keys: Collection[str]) -> bool:
    return any("unilora_theta_d" in key for key in keys)


def _bare(keys: Collection[str]) -> bool:
    return any(key.endswith((".logits_A", ".logits_B")) for key in keys)


def _with_copies(keys: Collection[str]) -> bool:
    from vbfmt.converters.nlu import is_whole_model

    return is_whole_model(keys)


READERS = (
    Reader("peft", "PEFT VB-LoRA", _peft),
    Reader("unilora", "PEFT Uni-LoRA", _unilora, wants_base=True),
    Reader("nlu", "the VB-LoRA authors' NLU checkpoint", _nlu, "config.json"),
    Reader("algorithm1", "the layout of the paper's Algorithm 1", _algorithm1, None),
)
"""What `read` understands. Without copies of the bank in its modules, a plain state dict could be
of either of the last two, and nothing in it shows which."""


@dataclass(frozen=True)
class Writer:
    """One form of standard LoRA that is written, by ``write`` of ``vbfmt.converters.<module>``.

    Attributes:
        name: as ``--to`` takes it.
        module: its module.
        what: in words.
        files: the names of what it writes into its folder; none if it writes one file.
        wants_base: whether it must know the base model.
        takes_base: whether it makes use of the base model, if that is given.
    """

    name: str
    module: str
    what: str
    files: tuple[str, ...] = ()
    wants_base: bool = False
    takes_base: bool = False

    def write(self, adapter: LowRank, path: PathLike, **options: Any) -> int:
        """Write the adapter, say how many bytes; options and errors as that module's ``write``."""
        written: int = import_module(f"vbfmt.converters.{self.module}").write(
            adapter, path, **options
        )
        return written


WRITERS = {
    writer.name: writer
    for writer in (
        Writer("peft", "lora", "LoRA", (peft_layout.WEIGHTS, peft_layout.CONFIG), takes_base=True),
        Writer("gguf", "gguf", "GGUF LoRA", wants_base=True),
        Writer("mlx", "mlx", "mlx-lm LoRA", ("adapters.safetensors", peft_layout.CONFIG)),
    )
}


@dataclass(frozen=True)
class Source:
    """An opened checkpoint and the reader that understands it."""

    checkpoint: Checkpoint
    reader: Reader

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read of it: the weights, and the config if there is one."""
        name = self.reader.config
        config = self.checkpoint.config_file(name) if name else None
        return (self.checkpoint.file, *([config] if config and config.is_file() else []))

    def read(self, *, topk: int | None = None, base: PathLike | None = None) -> Adapter:
        """The adapter. Arguments and errors as `read`."""
        module = import_module(f"vbfmt.converters.{self.reader.name}")
        options = {"base": base} if self.reader.wants_base else {}
        adapter: Adapter = module.from_checkpoint(self.checkpoint, topk=topk, **options)
        return adapter


def read(
    path: PathLike,
    *,
    layout: str | None = None,
    topk: int | None = None,
    base: PathLike | None = None,
) -> Adapter:
    """The adapter in a checkpoint of any format in `READERS`.

    Args:
        path: a folder, or a weights file (a config beside it is used if there is one).
        layout: the name of the reader to use, for sources that do not show it.
        topk: k, for logits without a config.
        base: the base model's folder, for Uni-LoRA checkpoints that hold only a seed.

    Raises:
        SourceError: no reader or several claim it, it is incomplete or contradicts itself.
        ContentError: its values cannot make an adapter: NaN, an index past the bank.
        StorageError: a file cannot be read.
    """
    return open_source(path, layout=layout).read(topk=topk, base=base)


def open_source(path: PathLike, *, layout: str | None = None) -> Source:
    """Open a checkpoint and choose its reader.

    Raises:
        SourceError, StorageError: as `read`.
    """
    from vbfmt.converters._files.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    return Source(checkpoint, _reader_of(checkpoint, layout))


def _reader_of(checkpoint: Checkpoint, layout: str | None) -> Reader:
    from vbfmt.errors import SourceError

    keys = checkpoint.tensors.keys()
    if layout is not None:
        chosen = [reader for reader in READERS if reader.name == layout]
        if not chosen:
            names = ", ".join(reader.name for reader in READERS)
            raise SourceError("unknown layout", part="`layout`", found=layout, expected=names)
        return chosen[0]
    claims = [reader for reader in READERS if reader.claims(keys)]
    if len(claims) == 1:
        return claims[0]
    if claims:
        raise SourceError(
            "more than one layout is possible, and they give different weights",
            file=checkpoint.file,
            found=" or ".join(reader.what for reader in claims),
            advice="say which: " + " or ".join(f"`layout={reader.name}`" for reader in claims),
        )
    lora = any(".lora_A" in key or ".lora_B" in key for key in keys)
    raise SourceError(
        "no VB-LoRA checkpoint",
        file=checkpoint.file,
        part="keys",
        found="LoRA factors" if lora else ", ".join(sorted(keys)[:2]) or "no tensors",
        expected="; ".join(reader.what for reader in READERS),
        advice="this is a standard LoRA already" if lora else None,
    )
