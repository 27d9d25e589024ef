"""A checkpoint → a packed file."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import BinaryIO

from vbfmt import packed
from vbfmt._files import outputs, parents, storage
from vbfmt.adapter import Adapter
from vbfmt.converters import Source, open_source, sources
from vbfmt.converters.hub import card as cards
from vbfmt.converters.operations import inputs
from vbfmt.errors import ConfigError, TargetError, warn
from vbfmt.packed import Form

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Packed:
    """What `pack` wrote.

    Attributes:
        digest: ``sha256:…``, the adapter's name.
        size: bytes of the packed file.
        source_size: bytes of the files that were read.
        layout: the name of the reader, as `vbfmt.converters.READERS` has it.
        what: the same in words.
        adapter: the adapter.
        bank: path of the bank's file, if it is one of its own.
    """

    digest: str
    size: int
    source_size: int
    layout: str
    what: str
    adapter: Adapter
    bank: str | None = None


def pack(
    src: PathLike,
    dst: PathLike | BinaryIO,
    *,
    topk: int | None = None,
    layout: str | None = None,
    base: PathLike | None = None,
    base_model: str | None = None,
    revision: str | None = None,
    bank: Form = "embedded",
    banks: PathLike | None = None,
    card: bool = False,
    overwrite: bool = False,
) -> Packed:
    """Pack a VB-LoRA checkpoint into one file.

    Args:
        src: its folder or weights file, or a repository on the Hugging Face Hub.
        dst: the file to write, or an open binary file. Missing folders above it are made.
        topk: k, for logits without a config.
        layout: the name of the reader in `vbfmt.converters.READERS`, for sources that do not show
            it.
        base: the base model's folder, for Uni-LoRA checkpoints that hold only a seed.
        base_model: the base model's name to record, instead of the source's own.
        revision: of a repository: a branch, a tag or a commit.
        bank, banks: where the bank goes, as `vbfmt.save`.
        card: write a model card for the Hub beside the file.
        overwrite: replace an existing file.

    Warns:
        VbfmtWarning: the source names a path of the machine that trained it, which is not recorded.

    Raises:
        SourceError, ContentError: the source cannot be packed.
        OutputExistsError, TargetError, StorageError: the file cannot be written.
    """
    file = dst if isinstance(dst, (str, os.PathLike)) else None
    readme = None if file is None else os.path.join(os.path.dirname(file), cards.NAME)
    if file is not None:
        outputs.require_file(file, overwrite=overwrite)
    if card:
        _require_no_card(readme)
    opened, config = _opened(src, layout, base, revision)
    if file is not None:
        outputs.require_not_read(file, [*opened.files, *inputs.configs(config)])
    source_size = sum(os.path.getsize(each) for each in opened.files)
    adapter = recorded(opened.read(topk=topk, base=config), base_model)
    if isinstance(dst, (str, os.PathLike)):
        text = _card(adapter, dst) if card else None
        with parents.made(dst):
            done = packed.write(adapter, dst, overwrite=overwrite, bank=bank, banks=banks)
            if readme is not None and text is not None:
                storage.write(readme, [text], overwrite=False)
    else:
        done = _write_stream(packed.dumps(adapter, bank=bank), packed.digest(adapter), dst)
    reader = opened.reader
    return Packed(done.digest, done.size, source_size, reader.name, reader.what, adapter, done.bank)


def recorded(adapter: Adapter, base_model: str | None = None) -> Adapter:
    """The adapter with the base model's name that its packed form keeps.

    That is `base_model` if it is given. Else it is what the source says, unless that is a path of
    the machine that trained the adapter.

    Warns:
        VbfmtWarning: a path is left out.
    """
    named = adapter.base_model
    if base_model is not None:
        same = base_model == named
        return replace(
            adapter,
            base_model=base_model,
            base_revision=adapter.base_revision if same else None,
        )
    if named is None or not inputs.is_local_path(named):
        return adapter
    warn(
        f"the base model's name is a path of the machine that trained it, and is not recorded: "
        f"{named}; give `base_model=NAME` to record one"
    )
    return replace(adapter, base_model=None, base_revision=None)


def _opened(
    src: PathLike, layout: str | None, base: PathLike | None, revision: str | None
) -> tuple[Source, str | None]:
    path = sources.checkpoint(os.fspath(src), revision=revision)
    opened = open_source(path, layout=layout)
    return opened, None if base is None else sources.config(os.fspath(base))


def _require_no_card(readme: str | None) -> None:
    if readme is None:
        raise ConfigError("`card` needs a path to write beside", part="`dst`")
    if os.path.lexists(readme):  # it could be anybody's: not even `overwrite` replaces it
        raise TargetError(
            "the model card exists already", file=readme, advice="pack into a folder of its own"
        )


def _card(adapter: Adapter, file: PathLike) -> bytes:
    return cards.packed(adapter, os.path.basename(file), packed.digest(adapter))


def _write_stream(data: bytes, digest: str, stream: BinaryIO) -> packed.Written:
    stream.write(data)
    stream.flush()
    return packed.Written(digest, len(data))
