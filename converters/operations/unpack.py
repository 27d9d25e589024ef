"""Write an adapter as a PEFT VB-LoRA folder."""

from __future__ import annotations

from dataclasses import dataclass

from vbfmt._files import PathLike, outputs, parents, peft_layout
from vbfmt._files.banks import Sources
from vbfmt.adapter import Adapter
from vbfmt.converters import peft
from vbfmt.converters.hub import card as cards
from vbfmt.converters.operations import inputs


@dataclass(frozen=True)
class Unpacked:
    """The result of `unpack`.

    Attributes:
        size: size of the written files in bytes.
        adapter: the adapter.
    """

    size: int
    adapter: Adapter


def unpack(
    src: inputs.Given,
    dst: PathLike,
    *,
    revision: str | None = None,
    banks: Sources | None = None,
    card: bool = False,
    overwrite: bool = False,
) -> Unpacked:
    """Write an adapter as a folder that PEFT loads as VB-LoRA (top-k form, float32).

    Args:
        src: a packed file, a checkpoint, a repository on the Hugging Face Hub, or an adapter.
        dst: the folder to write. Missing parent folders are created.
        revision: the repository's branch, tag or commit.
        banks: where to search for external banks, as in `vbfmt.load`.
        card: write a model card for the Hub, too.
        overwrite: replace the files of an existing folder.

    Raises:
        VbfmtError: `src` cannot be read.
        TargetError: modules differ in rank, which PEFT's VB-LoRA cannot express.
        OutputExistsError: `dst` exists, and `overwrite` is not set.
        StorageError: the folder cannot be written.
    """
    outputs.require_folder(dst, overwrite=overwrite)
    found = inputs.located(src, revision=revision)
    written = (peft_layout.WEIGHTS, peft_layout.CONFIG, *([cards.NAME] if card else []))
    outputs.require_no_input(dst, inputs.files_of(found), names=written)
    adapter = inputs.loaded(found, banks=banks)
    with parents.created(dst):
        text = cards.vblora(adapter) if card else None
        size = peft.write(adapter, dst, overwrite=overwrite, card=text)
    return Unpacked(size, adapter)
