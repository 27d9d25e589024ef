"""Read and write other formats. Each has its own file or small package.

`READERS` lists the formats that `read` recognizes, and `WRITERS` lists the forms to which an
adapter can be expanded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vbfmt._files import PathLike, peft_layout

if TYPE_CHECKING:
    from pathlib import Path

    from vbfmt.adapter import Adapter
    from vbfmt.converters._files.checkpoint import Checkpoint
    from vbfmt.converters.lowrank import LowRank


@dataclass(frozen=True)
class Reader:
    """A format that ``vbfmt.converters.<name>.from_checkpoint`` can read.

    Attributes:
        name: its name, as in ``--layout``.
        title: its human-readable name.
        claims: a function that returns whether a state dict with given keys may have this format.
        config: name of the config file that is read beside the weights; None if there is none.
        may_need_base: whether reading may need the base model's folder.
    """

    name: str
    title: str
    claims: Callable[[Collection[str]], bool]
    config: str | None = peft_layout.CONFIG
    may_need_base: bool = False


def _peft(keys: Collection[str]) -> bool:
    return any("vblora_vector_bank" in key or "vblora_logits_" in key for key in keys)


def _unilora(keys: Collection[str]) -> bool:
    return any("unilora_theta_d" in key for key in keys)


def _nlu(keys: Collection[str]) -> bool:
    return any(key.endswith((".logits_A", ".logits_B")) for key in keys)


def _algorithm1(keys: Collection[str]) -> bool:
    from vbfmt.converters.nlu import is_whole_model

    return _nlu(keys) and not is_whole_model(keys)


READERS = (
    Reader("peft", "PEFT VB-LoRA", _peft),
    Reader("unilora", "PEFT Uni-LoRA", _unilora, may_need_base=True),
    Reader("nlu", "the VB-LoRA authors' NLU checkpoint", _nlu, "config.json"),
    Reader("algorithm1", "the layout of the paper's Algorithm 1", _algorithm1, None),
)
"""The formats that `read` recognizes. In the authors' own checkpoints (``nlu``), every module has a
copy of the bank. Without copies, the last two formats have the same keys, and the caller must
choose."""


@dataclass(frozen=True)
class Writer:
    """A form of standard LoRA that ``vbfmt.converters.<module>.write`` can write.

    Attributes:
        name: its name, as in ``--to``.
        module: name of the module that writes it.
        title: its human-readable name.
        files: names of the files in the folder that it writes; empty if it writes one file.
        needs_base: whether the base model must be known.
        uses_base: whether the base model is used if it is given.
    """

    name: str
    module: str
    title: str
    files: tuple[str, ...] = ()
    needs_base: bool = False
    uses_base: bool = False

    def write(self, adapter: LowRank, path: PathLike, **options: Any) -> int:
        """Write the adapter and return the number of bytes.

        Options and errors are those of that module's ``write``.
        """
        written: int = import_module(f"vbfmt.converters.{self.module}").write(
            adapter, path, **options
        )
        return written


WRITERS = {
    writer.name: writer
    for writer in (
        Writer("peft", "lora", "LoRA", (peft_layout.WEIGHTS, peft_layout.CONFIG), uses_base=True),
        Writer("gguf", "gguf", "GGUF LoRA", needs_base=True),
        Writer("mlx", "mlx", "mlx-lm LoRA", ("adapters.safetensors", peft_layout.CONFIG)),
    )
}


@dataclass(frozen=True)
class Source:
    """An opened checkpoint and the reader for its format."""

    checkpoint: Checkpoint
    reader: Reader

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read: the weights, and the config if there is one."""
        name = self.reader.config
        config = self.checkpoint.config_file(name) if name else None
        found = [config] if config and config.is_file() else []
        return (self.checkpoint.file, *self.checkpoint.shards, *found)

    def read(self, *, topk: int | None = None, base: PathLike | None = None) -> Adapter:
        """Read and return the adapter. Arguments and errors are those of
        `vbfmt.converters.read`."""
        module = import_module(f"vbfmt.converters.{self.reader.name}")
        options = {"base": base} if self.reader.may_need_base else {}
        adapter: Adapter = module.from_checkpoint(self.checkpoint, topk=topk, **options)
        self.checkpoint.require_unchanged()
        return adapter


def read(
    path: PathLike,
    *,
    layout: str | None = None,
    topk: int | None = None,
    base: PathLike | None = None,
) -> Adapter:
    """Read the adapter in a checkpoint of any format in `READERS`.

    Args:
        path: the checkpoint's folder, or its weights file. A config beside that file is used if
            there is one.
        layout: name of the reader to use, needed if several formats are possible.
        topk: k, needed if the checkpoint has logits and no config.
        base: the base model's folder, needed for Uni-LoRA checkpoints that contain only a seed.

    Raises:
        SourceError: the checkpoint has none of the formats, several formats are possible, or it is
            incomplete or contradicts itself.
        ContentError: a value breaks a rule, for example NaN or an index outside the bank.
        StorageError: a file cannot be read, or changes meanwhile.
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
            found=" or ".join(reader.title for reader in claims),
            advice="say which: " + " or ".join(f"`layout={reader.name}`" for reader in claims),
        )
    lora = any(".lora_A" in key or ".lora_B" in key for key in keys)
    raise SourceError(
        "not a VB-LoRA checkpoint",
        file=checkpoint.file,
        part="keys",
        found="LoRA factors" if lora else ", ".join(sorted(keys)[:2]) or "no tensors",
        expected=" or ".join(reader.title for reader in READERS),
        advice="this is a standard LoRA already; only VB-LoRA can be packed" if lora else None,
    )
