"""The commands that upload an output to the Hugging Face Hub."""

from __future__ import annotations

import shlex
import subprocess
import sys

from vbfmt.cli import show


def show_upload_line(*paths: str | None) -> None:
    """Print the commands that upload the files or folders that a command has written."""
    show.say(upload_line(*(path for path in paths if path is not None)))


def upload_line(*paths: str) -> str:
    """Return the line with the commands that upload files or folders.

    They are quoted for this system's shell. The user fills in the repository's name.
    """
    quoted = subprocess.list2cmdline if sys.platform == "win32" else shlex.join
    return "to upload: " + " && ".join(f"hf upload OWNER/NAME {quoted([path])}" for path in paths)
