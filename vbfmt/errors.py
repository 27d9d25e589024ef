"""The errors of this library, with a class for each kind, and its warning.

Every message is one line: ``<what> in <file>: <part>: found …, expected …; <what to do>``. If the
file itself exists already or is missing, there is a colon instead of *in*. The parts are also
attributes, so that programs need not parse the message. Each class also derives from a built-in
exception: `ValueError` for bad content, `FileNotFoundError` for missing files, `FileExistsError`
for output that exists, `OSError` if the operating system refuses, and `ImportError` for an extra
that is not installed.

A `VbfmtWarning` is something that a user should know although nothing failed.
"""

from __future__ import annotations

import errno as _errno
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

LONGEST_PIECE = 200
"""Largest number of characters of an attribute that a message shows."""


class VbfmtError(Exception):
    """An error that says what is wrong, where, what was found and expected, and what to do.

    Attributes:
        kind: short, stable name of the kind of error, for programs (``verify --json``).
        what: what is wrong, without a full stop.
        file: the file or folder with the error, if known.
        part: the part of the file: ``preamble``, ``header``, ``bank``, a tensor's name, …
        found, expected: what was found, and what was expected.
        advice: what the user can do.
    """

    kind: ClassVar[str] = "error"
    _before_file: ClassVar[str] = " in "

    def __init_subclass__(cls, *, kind: str | None = None) -> None:
        """Set the class's `kind`. Without one, it has the kind of its base."""
        super().__init_subclass__()
        if kind is not None:
            cls.kind = kind

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

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.what, self.__dict__.copy())

    def in_file(self, file: str | os.PathLike[str]) -> VbfmtError:
        """Set `file` if it is None, and return this error."""
        if self.file is None:
            self.file = os.fspath(file)
        return self

    def detail(self) -> str:
        """Return the message without the file, for reports that already name the file."""
        return self._line(None)

    def __str__(self) -> str:
        return self._line(self.file)

    def _head(self, file: str | None) -> str:
        return _cut(self.what) if file is None else f"{_cut(self.what)}{self._before_file}{file}"

    def _measured(self) -> list[str]:
        return [
            f"{word} {_cut(value)}"
            for word, value in (("found", self.found), ("expected", self.expected))
            if value is not None
        ]

    def _line(self, file: str | None) -> str:
        pieces = [self._head(file), _cut(self.part or ""), ", ".join(self._measured())]
        line = ": ".join(piece for piece in pieces if piece)
        return printable(f"{line}; {self.advice}" if self.advice else line)


@contextmanager
def in_file(file: str | os.PathLike[str]) -> Iterator[None]:
    """Name a file in the errors of the block that do not name one."""
    try:
        yield
    except VbfmtError as error:
        raise error.in_file(file) from None


def few(names: Sequence[str]) -> str:
    """Return the first three of `names` as text, and how many more there are."""
    rest = len(names) - 3
    return ", ".join(names[:3]) + (f" and {rest} more" if rest > 0 else "")


def _cut(text: str) -> str:
    """Return `text`, truncated to `LONGEST_PIECE`, because text from a file may be very long."""
    shown = printable(text[: LONGEST_PIECE + 1])
    return shown if len(shown) <= LONGEST_PIECE else f"{shown[: LONGEST_PIECE - 1]}…"


def printable(text: str) -> str:
    """Return `text` on one line, with escapes for characters that are not printable."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _rebuilt(kind: type[VbfmtError], what: str, fields: dict[str, Any]) -> VbfmtError:
    """Restore a pickled error. Without this, subclasses of OSError would lose fields."""
    error = kind(what)
    error.__dict__.update(fields)
    return error


class VbfmtWarning(UserWarning):
    """Something that a user should know, although nothing failed."""


def warn(sentence: str) -> None:
    """Issue a `VbfmtWarning` that points to the caller outside this library."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(sentence, VbfmtWarning, stacklevel=level)


def _is_ours(module: str) -> bool:
    return module == "vbfmt" or module.startswith("vbfmt.")


class _BadValueError(VbfmtError, ValueError):
    """An error that is also a ValueError."""


class MagicError(_BadValueError, kind="magic"):
    """The file does not begin like a packed file."""


class VersionError(_BadValueError, kind="version"):
    """The file has a major version that this library does not read."""


class FeatureError(_BadValueError, kind="feature"):
    """The file requires a feature that this library does not know."""


class LengthError(_BadValueError, kind="length"):
    """The file is truncated or extended."""


class ChecksumError(_BadValueError, kind="checksum"):
    """The file is damaged: bytes do not match their checksum."""


class BankError(VbfmtError, FileNotFoundError, kind="bank"):
    """An external vector bank was not found."""


class StoreError(_BadValueError, kind="store"):
    """A store, a name or a digest is not valid."""


class UnknownError(VbfmtError, LookupError, kind="unknown"):
    """A store has no adapter with that name or digest."""


class ConflictError(VbfmtError, kind="conflict"):
    """A name in a store is taken, or another process has changed it meanwhile."""


class DigestError(_BadValueError, kind="digest"):
    """The file's digest is not the one that the caller trusts."""


class HeaderError(_BadValueError, kind="header"):
    """The header is not the canonical msgpack map that the specification requires."""


class LayoutError(_BadValueError, kind="layout"):
    """Sections overlap, leave gaps or are misaligned, or padding is not zero."""


class ContentError(_BadValueError, kind="content"):
    """A value breaks a rule of the format, such as an index outside the bank."""


class SourceError(_BadValueError, kind="source"):
    """A foreign checkpoint cannot be read as a VB-LoRA adapter."""


class TargetError(_BadValueError, kind="target"):
    """The adapter cannot be written in the requested form."""


class ConfigError(_BadValueError, kind="config"):
    """A setting is not valid, or contradicts another one."""


class ModelError(_BadValueError, kind="model"):
    """The adapter and the model do not fit each other."""


class MissingSourceError(SourceError, FileNotFoundError, kind="missing"):
    """The checkpoint, model or repository to read does not exist."""

    _before_file = ": "


class MissingExtraError(VbfmtError, ImportError, kind="extra"):
    """A package is not installed. One of vbfmt's extras installs it.

    Attributes:
        extra: the extra to install.
    """

    extra: str | None = None

    @classmethod
    def of(
        cls, what: str, extra: str, *, file: str | os.PathLike[str] | None = None
    ) -> MissingExtraError:
        """Return the error that advises to install `extra`."""
        error = cls(what, file=file, advice=f"pip install 'vbfmt[{extra}]'")
        error.extra = extra
        return error


class StorageError(VbfmtError, OSError, kind="storage"):
    """The operating system reported an error on reading or writing.

    It has the attributes of an OSError.
    """

    _before_file = " "

    def __init__(self, what: str, *, errno: int | None = None, **fields: Any) -> None:
        super().__init__(what, **fields)
        self._errno = errno

    @property
    def errno(self) -> int | None:  # type: ignore[override]
        """The system's error number, if it gave one."""
        return self._errno

    @property
    def filename(self) -> str | None:
        """The file."""
        return self.file

    @property
    def strerror(self) -> str | None:  # type: ignore[override]
        """The system's message."""
        return self.found

    def _measured(self) -> list[str]:
        if self._errno is None or self.found is None:
            return super()._measured()
        return [_cut(self.found[:1].lower() + self.found[1:])]


class MissingFileError(StorageError, FileNotFoundError, kind="no-file"):
    """A file to read, or a folder to write to, does not exist."""


class OutputExistsError(VbfmtError, FileExistsError, kind="exists"):
    """The output exists already, and `overwrite` is not set."""

    _before_file = ": "

    @property
    def errno(self) -> int:  # type: ignore[override]
        """EEXIST."""
        return _errno.EEXIST

    @property
    def filename(self) -> str | None:
        """The output."""
        return self.file
