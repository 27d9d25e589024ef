"""How what was written goes to the Hugging Face Hub."""

from __future__ import annotations

import shlex
import subprocess
import sys


def upload_line(*paths: str) -> str:
    """Return the commands that upload files or folders, for the user to run with a repository's
    name, quoted as this system's shell wants it."""
    quoted = subprocess.list2cmdline if sys.platform == "win32" else shlex.join
    return "to upload: " + " && ".join(f"hf upload OWNER/NAME {quoted([path])}" for path in paths)
