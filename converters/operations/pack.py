"""Pack a checkpoint into one file."""

from __future__ import annotations

import errno
import io
import os
from dataclasses import dataclass, replace
from typing import BinaryIO

from vbfmt import packed
from vbfmt._files import PathLike, outputs, parents, storage
from vbfmt.adapter import Adapter
from vbfmt.converters import READERS, Source, open_source, sources
from vbfmt.converters.hub import card as cards
from vbfmt.converters.operations import inputs
from vbfmt.errors import ConfigError, TargetError, warn
from vbfmt.packed import Form


@dataclass(frozen=True)
class Packed:
    """The result of `pack`.

    Attributes:
        digest: the adapter's digest, ``sha256:…``.
        size: size of the packed file in bytes.
        source_size: size in bytes of the files that were read.
        layout: name of the source's format in `vbfmt.converters.READERS`.
        title: human-readable name of the source's format.
        adapter: the adapter.
        bank: path of the bank's file; None if the bank is embedded.
    """

    digest: str
    size: int
    source_size: int
    layout: str
    title: str
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
        src: the checkpoint's folder or weights file, or a repository on the Hugging Face Hub.
        dst: the path of the file to write, or an open binary file. Missing parent folders are
            created.
        topk: k, needed if the checkpoint has logits and no config.
        layout: name of the format in `vbfmt.converters.READERS`, needed if several are possible.
        base: the base model's folder, needed for Uni-LoRA checkpoints that contain only a seed.
        base_model: the base model's name to record instead of the name in the source.
        revision: the repository's branch, tag or commit.
        bank, banks: where the bank is written, as in `vbfmt.save`.
        card: write a model card for the Hub beside the file.
        overwrite: replace an existing file.

    Warns:
        VbfmtWarning: the base model's name is a path on the machine that trained the adapter, and
            is not recorded. The reader of the format may also warn.

    Raises:
        SourceError: the source cannot be read as a VB-LoRA adapter.
        ContentError: a value breaks a rule of the format.
        ConfigError: `card` is set and `dst` is not a path, or `base` is given for a checkpoint that
            is read without one.
        OutputExistsError: `dst` exists, and `overwrite` is not set.
        TargetError, StorageError: the file cannot be written, or a file cannot be read.
    """
    file = dst if isinstance(dst, (str, os.PathLike)) else None
    readme = None if file is None else os.path.join(os.path.dirname(file), cards.NAME)
    if file is not None:
        outputs.require_packed_name(file)
        outputs.require_file(file, overwrite=overwrite)
    if card:
        _require_no_card(readme)
    opened = open_source(sources.checkpoint(os.fspath(src), revision=revision), layout=layout)
    config = base_of(opened, base)
    if file is not None:
        outputs.require_no_input(file, [*opened.files, *inputs.configs(config)])
    source_size = sum(os.path.getsize(each) for each in opened.files)
    adapter = recorded(opened.read(topk=topk, base=config), base_model)
    if isinstance(dst, (str, os.PathLike)):
        name = os.path.basename(dst)
        text = cards.packed(adapter, name, packed.digest(adapter)) if card else None
        with parents.created(dst):
            done = packed.write(adapter, dst, overwrite=overwrite, bank=bank, banks=banks)
            if readme is not None and text is not None:
                storage.write(readme, [text], overwrite=False)
    else:
        done = _write_stream(packed.dumps(adapter, bank=bank), packed.digest(adapter), dst)
    reader = opened.reader
    return Packed(
        done.digest, done.size, source_size, reader.name, reader.title, adapter, done.bank
    )


def recorded(adapter: Adapter, base_model: str | None = None) -> Adapter:
    """Return the adapter with the base model's name that is recorded in the packed file.

    This is `base_model` if it is given. Otherwise, it is the name in the source, or None if that is
    a path on the machine that trained the adapter.

    Warns:
        VbfmtWarning: such a path was not recorded.
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
        f"the base model's name is a path on the machine that trained the adapter, so it is not "
        f"recorded: {named}; give `base_model=NAME` to record one"
    )
    return replace(adapter, base_model=None, base_revision=None)


def base_of(opened: Source, base: PathLike | None) -> str | None:
    """Return the local path of the base model that is given for a checkpoint, None if none is.

    Raises:
        ConfigError: checkpoints of this format are read without a base.
        SourceError: there is no such folder or repository.
    """
    if base is None:
        return None
    if not opened.reader.may_need_base:
        raise ConfigError(
            "this checkpoint is read without a base model",
            part="`base`",
            found=opened.reader.title,
            expected=" or ".join(reader.title for reader in READERS if reader.may_need_base),
            advice="leave it out",
        )
    return sources.config(os.fspath(base))


def _require_no_card(readme: str | None) -> None:
    if readme is None:
        raise ConfigError("`card` needs a path: the card is written beside the file", part="`dst`")
    if os.path.lexists(readme):  # a user may have written it, so `overwrite` does not apply
        raise TargetError(
            "the model card exists already", file=readme, advice="pack into a folder without one"
        )


def _write_stream(data: bytes, digest: str, stream: BinaryIO) -> packed.Written:
    rest = memoryview(data)
    if isinstance(stream, io.RawIOBase):  # without a buffer, which may write only a part at a time
        while rest:
            written = stream.write(rest)
            if written is None:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            rest = rest[written:]
    else:
        stream.write(data)
    stream.flush()
    return packed.Written(digest, len(data))
