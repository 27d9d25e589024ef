"""What commands print about the files that they have written."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

from vbfmt.cli import show
from vbfmt.packed import Written


def show_written(done: Written, output: str, *, as_json: bool) -> None:
    """Print size and digest of a packed file, and where its bank is if that is a file too."""
    if as_json:
        show.as_json(
            {"output": output, "digest": done.digest, "bytes": done.size, "bank": done.bank}
        )
        return
    bank = f", its bank in {done.bank}" if done.bank else ""
    show.say(f"{output}: {show.size(done.size)}{bank}")
    show.say(done.digest)
    show_upload_line(output, done.bank)


def show_upload_line(*paths: str | None) -> None:
    """Print the commands that upload files or folders to the Hugging Face Hub."""
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
