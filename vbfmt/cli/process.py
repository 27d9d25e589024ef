"""Set up the process of a command: its standard streams, encodings and signals."""

from __future__ import annotations

import codecs
import contextlib
import gc
import io
import os
import signal
import sys
from types import FrameType

_IN_ASCII = {
    "×": "x",
    "·": "*",
    "→": "->",
    "−": "-",
    "–": "-",
    "…": "...",
    "“": '"',
    "”": '"',
    "‖": "||",
    "Δ": "d",
    "σ": "sigma",
}
"""Characters of our messages → ASCII, for terminals that cannot show them."""

_TERMINATING = ("SIGTERM", "SIGHUP", "SIGBREAK")
"""Signals that would end the process immediately. Not every system has all of them."""


closed: set[str] = set()
"""The standard streams that were closed when the process began: ``stdin``, ``stdout``, …"""


def open_closed_streams() -> None:
    """Open the null device for standard streams that are closed (``>&-``), and record them.

    Python has no object for a closed stream, and the next opened file gets its descriptor. Anything
    that other code writes to that stream would then go into the file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            closed.add(name)
            file = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(file, mode, encoding="utf-8"))


def read_any_name() -> None:
    """Allow any bytes in file names on standard input, as in arguments."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        with contextlib.suppress(OSError, ValueError):  # closed, or detached
            sys.stdin.reconfigure(errors="surrogateescape")


def write_in_any_encoding() -> None:
    """Replace characters that standard output and standard error cannot encode."""
    codecs.register_error("vbfmt", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):  # closed, or detached
                stream.reconfigure(errors="vbfmt")


def write_completely() -> None:
    """Give standard output a buffer if it has none (``python -u``, ``PYTHONUNBUFFERED``).

    Without a buffer, Python ignores that the system has written only a part, as on a disk that
    becomes full, and the rest is lost without an error.
    """
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper) and isinstance(stream.buffer, io.RawIOBase):
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(stream.buffer),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=True,
        )


def discard_unwritten_output() -> None:
    """Discard what standard output could not write.

    Python would try again when the process ends, print a second error and exit with status 120.
    """
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # not a file
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)


def collect_less_often() -> None:
    """Run the cyclic garbage collector less often than Python does by default.

    A large header has hundreds of thousands of small objects that stay in use. Traversing them
    again and again would take as long as all other work.
    """
    gc.set_threshold(50_000, 20, 50)


def clean_up_on_signals() -> None:
    """Raise SystemExit on signals that would otherwise end the process without clean-up.

    Signals that the caller ignores (``nohup``) stay ignored.
    """
    for name in _TERMINATING:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            with contextlib.suppress(ValueError, OSError):  # not in the main thread
                signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the clean-up
    sys.exit(128 + number)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(character, "?") for character in text), error.end
