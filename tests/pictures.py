"""Draw the README's pictures from the trained checkpoint: ``python -m tests.pictures FOLDER``."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, MONOKAI

from vbfmt import digest, dumps
from vbfmt.analysis.summary import summarize
from vbfmt.cli.inspect_page import print_page
from vbfmt.converters import peft
from vbfmt.plot import Scene, write

CHECKPOINT = Path(__file__).parent / "data" / "minilm-vblora"
NAME = "minilm.vblora"
FIGURES = ("usage", "depth", "kinds", "selection", "projection", "delta")
THEMES = {"light": DEFAULT_TERMINAL_THEME, "dark": MONOKAI}


def main(folder: str) -> None:
    """Write the pictures into FOLDER, and replace older ones."""
    os.makedirs(folder, exist_ok=True)
    adapter = peft.read(CHECKPOINT)
    scene = Scene(adapter, NAME)
    for name in FIGURES:
        write(scene, os.path.join(folder, f"{name}.png"), figures=[name], overwrite=True)
    console = Console(
        record=True, width=88, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    summary = summarize(adapter, len(dumps(adapter)))
    print_page(adapter, summary, NAME, digest(adapter), console)
    for name, theme in THEMES.items():
        text = console.export_svg(
            title=f"vbfmt inspect {NAME}", theme=theme, clear=False, unique_id=f"inspect-{name}"
        )
        # Remove fonts that the picture would download.
        text = re.sub(r"@font-face \{.*?\}", "", text, flags=re.DOTALL)
        Path(folder, f"inspect-{name}.svg").write_text(text, "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
