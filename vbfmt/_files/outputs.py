"""Check an output's path before any input is read."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterable

from vbfmt._files import PathLike, parents, storage
from vbfmt.errors import TargetError


def require_file(path: PathLike, *, overwrite: bool) -> None:
    """Check that a file can be written to `path`. Its parent folders may be missing.

    Raises:
        TargetError: `path` is the name of a folder, is not a regular file, or is below a file.
        OutputExistsError: `path` exists, and `overwrite` is not set.
    """
    if os.fspath(path).endswith(_SEPARATORS):
        raise TargetError("the output must be a file", file=path, found="the name of a folder")
    _require_kind(path, stat.S_IFREG)
    parents.nearest(path)
    if not overwrite:
        storage.require_absent(path)


def require_packed_name(path: PathLike) -> None:
    """Check that a packed file would not have the name of another kind of file.

    Raises:
        TargetError: `path` has the ending of a weight file, a bank or a JSON file.
    """
    ending = os.path.splitext(os.fspath(path))[1]
    if ending.lower() in _OTHER_ENDINGS:
        raise TargetError(
            "a packed file must not be named like another kind of file",
            file=path,
            found=ending,
            expected="a name with .vblora",
            advice="choose another name",
        )


def require_folder(path: PathLike, *, overwrite: bool) -> None:
    """Check that a folder can be written to `path`. Its parent folders may be missing.

    Raises:
        TargetError: `path` is not a folder, or is below a file.
        OutputExistsError: `path` is a folder that is not empty, and `overwrite` is not set.
    """
    _require_kind(path, stat.S_IFDIR)
    parents.nearest(path)
    if not overwrite:
        storage.require_absent(path)


def require_no_input(
    path: PathLike, inputs: Iterable[PathLike], *, names: Iterable[str] = ()
) -> None:
    """Check that an output would not replace an input.

    Args:
        path: the output.
        inputs: the files that are read.
        names: names of the files to write, if the output is a folder.

    Raises:
        TargetError: the output, or one of its files, is the same file as one of `inputs`.
    """
    written = [path, *(os.path.join(path, name) for name in names)]
    for file, source in itertools.product(written, inputs):
        if os.path.exists(file) and os.path.exists(source) and os.path.samefile(file, source):
            raise TargetError(
                "the output would replace an input",
                file=file,
                advice="choose another name",
            )


_OTHER_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".bank", ".json")
_SEPARATORS = tuple(filter(None, (os.sep, os.altsep)))
_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def _require_kind(path: PathLike, kind: int) -> None:
    try:
        found = stat.S_IFMT(os.stat(path).st_mode)
    except OSError:  # missing, or writing will report what is wrong
        return
    if found != kind:
        raise TargetError(
            "the output exists already, and is not replaced",
            file=path,
            found=_KINDS.get(found, "something else"),
            expected=_KINDS[kind],
            advice="choose another name",
        )
