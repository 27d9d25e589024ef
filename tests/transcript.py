"""Show the most common commands on a terminal: ``python -m tests.transcript [FILE]``.

Runs them in an empty folder with the trained checkpoint of tests/data, on a terminal of 80 columns,
and prints (or writes) each command with its output.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT
from tests.terminal import on_terminal

COMMANDS = (
    "vbfmt pack minilm-vblora -o minilm.vblora",
    "vbfmt verify minilm.vblora --against minilm-vblora",
    "vbfmt inspect minilm.vblora",
    "vbfmt expand minilm.vblora -o minilm-lora",
    "vbfmt expand minilm.vblora -o gated --check tgi --strict",
    "vbfmt unpack minilm.vblora -o peft",
    "vbfmt diff minilm.vblora peft",
    "vbfmt merge minilm.vblora --base no-such-folder -o merged",
    "vbfmt verify damaged.vblora",
    "vbfmt pack minilm-vblora -o minilm.vblora",
    "vbfmt pack minilm-vblora -o x.safetensors",
    "vbfmt pak minilm-vblora",
    "vbfmt expand minilm.vblora -o rank2 --rank 2 --drop-extras",
    "vbfmt estimate --model llama-2-7b",
)
"""Commands in order. `damaged.vblora` is the output of the first with one flipped bit."""

_FLIPPED = 5000  # a byte of the bank


def transcript() -> Iterator[str]:
    """Yield each command with its output."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "tests" / "data" / "minilm-vblora", folder / "minilm-vblora")
        for number, command in enumerate(COMMANDS):
            shown = on_terminal(shlex.split(command)[1:], folder)
            if number == 0:
                _damage(folder / "minilm.vblora", folder / "damaged.vblora")
            yield f"$ {command}\n{shown.rstrip()}\n"


def _damage(file: Path, copy: Path) -> None:
    data = bytearray(file.read_bytes())
    data[_FLIPPED] ^= 1
    copy.write_bytes(data)


def main() -> None:
    """See the module's docstring."""
    text = "\n".join(transcript())
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, "utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
