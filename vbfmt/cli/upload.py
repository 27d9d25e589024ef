"""How what was written goes to the Hugging Face Hub."""

from __future__ import annotations

import shlex


def upload_line(output: str, folder: str) -> str:
    """The command that uploads a folder, for the user to run.

    Args:
        output: what was written, from whose base model's name nothing follows about a repository.
        folder: that is uploaded.
    """
    return f"to upload: hf upload OWNER/NAME {shlex.quote(folder)}"
