"""One family of errors, one class per kind of fault.

Every message is one line: ``<what> in <file>: <part>: found …, expected …; <what to do>``.
The fields stay available, so that a program need not parse the line.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar

LONGEST_PIECE = 200
"""Characters that a message shows of one field; the fields themselves have all."""


class VbfmtError(Exception):
    """What is wrong, where, what was found and expected there, and what to do about it.

    Attributes:
        kind: short stable name of the kind of fault, for programs (``verify --json``).
        what: what is wrong, without a full stop.
        file: the file or folder that it was found in, if known.
        part: which part of the file: ``preamble``, ``header``, ``bank``, a tensor's name, …
        found, expected: what stands there and what should.
        advice: what the user can do.
    """

    kind: ClassVar[str] = "error"

    def __init__(
        self,
        what: str,
        *,
        file: str | os.PathLike[str] | None = None,
        part: str | None = None,
        found: object = None,
        expected: object = None,
        advice: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.file = None if file is None else os.fspath(file)
        self.part = part
        self.found = None if found is None else str(found)
        self.expected = None if expected is None else str(expected)
        self.advice = advice

    def in_file(self, file: str | os.PathLike[str]) -> VbfmtError:
        """The same error, now knowing its file; a file that is already known stays."""
        if self.file is None:
            self.file = os.fspath(file)
        return self

    def detail(self) -> str:
        """The message without the file: what a report prints that names the file elsewhere."""
        return self._line(None)

    def __str__(self) -> str:
        return self._line(self.file)

    def _line(self, file: str | None) -> str:
        head = _cut(self.what) if file is None else f"{_cut(self.what)} in {file}"
        measured = [
            f"{word} {_cut(value)}"
            for word, value in (("found", self.found), ("expected", self.expected))
            if value is not None
        ]
        pieces = [head, _cut(self.part or ""), ", ".join(measured)]
        line = ": ".join(piece for piece in pieces if piece)
        return printable(f"{line}; {self.advice}" if self.advice else line)


def few(names: Sequence[str]) -> str:
    """The first three of `names`, and how many more there are."""
    rest = len(names) - 3
    return ", ".join(names[:3]) + (f" and {rest} more" if rest > 0 else "")


def _cut(text: str) -> str:
    """`text`, or its beginning: names and values from a file may be as long as the file."""
    shown = printable(text[: LONGEST_PIECE + 1])
    return shown if len(shown) <= LONGEST_PIECE else f"{shown[: LONGEST_PIECE - 1]}…"


def printable(text: str) -> str:
    """`text` on one line: control and other unprintable characters are shown as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class MagicError(VbfmtError):
    """The file does not begin as a packed adapter does."""

    kind = "magic"


class VersionError(VbfmtError):
    """The file is of a major version that this library does not read."""

    kind = "version"


class FeatureError(VbfmtError):
    """The file requires a feature that this library does not know."""

    kind = "feature"


class LengthError(VbfmtError):
    """The file is cut off, or something was appended to it."""

    kind = "length"


class ChecksumError(VbfmtError):
    """Bytes differ from the checksum that the file holds of them: damage."""

    kind = "checksum"


class DigestError(VbfmtError):
    """The file is not the one that the caller trusts."""

    kind = "digest"


class HeaderError(VbfmtError):
    """The header is not the one canonical msgpack map that the specification asks for."""

    kind = "header"


class LayoutError(VbfmtError):
    """Sections overlap, leave holes, are misaligned, or the padding is not zero."""

    kind = "layout"


class ContentError(VbfmtError):
    """A value breaks a rule: an index past the bank, a weight outside its range, …"""

    kind = "content"


class SourceError(VbfmtError):
    """A foreign checkpoint cannot be read as a VB-LoRA adapter."""

    kind = "source"


class TargetError(VbfmtError):
    """The adapter cannot be written in the form asked for."""

    kind = "target"


class ConfigError(VbfmtError):
    """A setting that cannot work, or one that contradicts another."""

    kind = "config"


class ModelError(VbfmtError):
    """The adapter and the model do not fit each other."""

    kind = "model"


class OutputExistsError(VbfmtError):
    """The output exists already; nothing is overwritten unless asked for."""

    kind = "exists"


class StorageError(VbfmtError):
    """The operating system refused to read or write."""

    kind = "storage"
