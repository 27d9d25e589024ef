"""What commands print that write a packed file out of another one."""

from __future__ import annotations

from vbfmt.cli import show
from vbfmt.cli.upload import show_upload_line
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
