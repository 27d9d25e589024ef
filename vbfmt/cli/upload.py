"""How what was written goes to the Hugging Face Hub."""

from __future__ import annotations

import shlex


def upload_line(path: str) -> str:
    """The command that uploads a file or folder, for the user to run with a repository's name."""
    return f"to upload: hf upload OWNER/NAME {shlex.quote(path)}"
