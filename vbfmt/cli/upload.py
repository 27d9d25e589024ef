"""The commands that upload an output to the Hugging Face Hub."""

from __future__ import annotations

import shlex
import subprocess
import sys

from vbfmt.cli import show


def show_upload_line(*paths: str, always: bool) -> None:
    """Print the commands that upload files or folders, with ``-v`` only unless `always`."""
    (show.say if always else show.detail)(upload_line(*paths))


def upload_line(*paths: str) -> str:
    """Return the line with the commands that upload files or folders.

    They are quoted for this system's shell. The user fills in the repository's name.
    """
    quoted = subprocess.list2cmdline if sys.platform == "win32" else shlex.join
    return "to upload: " + " && ".join(f"hf upload OWNER/NAME {quoted([path])}" for path in paths)
