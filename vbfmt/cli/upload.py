"""The commands that upload an output to the Hugging Face Hub."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

from vbfmt.cli import show


def show_upload_line(*paths: str | None) -> None:
    """Print the commands that upload the files or folders that a command has written."""
    for path in paths:
        if path is not None:
            show.say_whole(upload_line(path))


def upload_line(path: str) -> str:
    """Return the line with the command that uploads a file or folder.

    The path is quoted for this system's shell, and never begins with a dash, so that it is not
    taken as an option. The user fills in the repository's name.
    """
    quoted = subprocess.list2cmdline if sys.platform == "win32" else shlex.join
    plain = os.path.join(os.curdir, path) if path.startswith("-") else path
    return f"to upload: hf upload OWNER/NAME {quoted([plain])}"
