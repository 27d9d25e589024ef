"""Run commands on a pseudo-terminal, as a user sees them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import ROOT

COLUMNS = 80


def on_terminal(words: Sequence[object], folder: Path, *, columns: int = COLUMNS) -> str:
    """Run a command of ``vbfmt`` in a folder, and return what the terminal shows, without
    colours."""
    import pty  # only on POSIX

    main, side = pty.openpty()
    environment = {
        **os.environ,
        "COLUMNS": str(columns),
        "TERM": "xterm",
        "PYTHONPATH": str(ROOT),
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "vbfmt", *map(str, words)],
        cwd=folder,
        stdout=side,
        stderr=side,
        env=environment,
    )
    os.close(side)
    shown = _all_from(main)
    child.wait()
    os.close(main)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(line.split("\r")[-1].rstrip() for line in lines)


def _all_from(terminal: int) -> bytes:
    found = b""
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:  # on Linux, the other side is closed
            return found
        if not block:
            return found
        found += block
