"""``vbfmt bank``: vector banks that adapters share."""

from __future__ import annotations

import click

from vbfmt.cli.arguments import BANKS, PATH

_EPILOG = "Example: vbfmt bank split adapter.vblora -o thin.vblora --banks banks"


@click.group("bank", epilog=_EPILOG)
def command() -> None:
    """Take a vector bank out of packed files, put it back, list what is there.

    A bank outside is a file of its own, named by its SHA-256, that many adapters share. An
    adapter's digest is the same with its bank inside and without.
    """


_OUTPUT = click.option("-o", "--output", required=True, type=PATH, help="The .vblora to write.")
_FORCE = click.option("--force", is_flag=True, help="Replace an existing file.")


@command.command("split")
@click.argument("file", metavar="FILE", type=PATH)
@_OUTPUT
@click.option("--banks", type=PATH, metavar="DIR", help="Folder for the bank; that of the output.")
@_FORCE
def split(file: str, output: str, banks: str | None, force: bool) -> None:
    """Write FILE without its bank, and the bank as <SHA-256>.bank.

    A bank of that name that is there already is checked and kept.
    """
    from vbfmt import banks as shared
    from vbfmt.cli import place
    from vbfmt.cli.show import say, size

    place.require_file(output, force=force)
    done = shared.split(file, output, banks=banks, overwrite=force)
    say(f"{output}: {size(done.size)}, its bank in {done.bank}")
    say(done.digest)


@command.command("join")
@click.argument("file", metavar="FILE", type=PATH)
@_OUTPUT
@BANKS
@_FORCE
def join(file: str, output: str, banks: tuple[str, ...], force: bool) -> None:
    """Write FILE with its bank inside.

    The bank is looked for in --banks, beside FILE and in banks/ there.
    """
    from vbfmt import banks as shared
    from vbfmt.cli import place
    from vbfmt.cli.show import say, size

    place.require_file(output, force=force)
    done = shared.join(file, output, banks=banks, overwrite=force)
    say(f"{output}: {size(done.size)}")
    say(done.digest)


@command.command("list")
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=PATH)
@BANKS
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.pass_context
def listing(
    ctx: click.Context, paths: tuple[str, ...], banks: tuple[str, ...], as_json: bool
) -> None:
    """List the banks in PATH... and how many adapters there need each.

    PATH is a folder (the current one if not given), a packed file or a bank. Exit status 1 if a
    bank is missing or damaged.
    """
    from vbfmt import banks as shared
    from vbfmt.cli import show

    found = shared.listing(paths or (".",), banks=banks)
    if as_json:
        show.as_json(
            [
                {
                    "sha256": one.sha256,
                    "size": one.size,
                    "file": one.file,
                    "ok": one.problem is None,
                    "problem": None if one.problem is None else str(one.problem),
                    "adapters": one.adapters,
                }
                for one in found
            ]
        )
    else:
        for one in found:
            users = show.counted(len(one.adapters), "adapter")
            where = one.problem or one.file
            show.say(f"{one.sha256}  {show.size(one.size)}  {users}  {where}")
    if any(one.problem for one in found):
        ctx.exit(1)
