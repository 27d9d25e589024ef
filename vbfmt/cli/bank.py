"""``vbfmt bank``: vector banks that adapters share."""

from __future__ import annotations

import click

from vbfmt.cli import arguments as args
from vbfmt.cli import show
from vbfmt.cli.command import Group
from vbfmt.cli.failure import in_user_terms


@click.group(
    "bank",
    cls=Group,
    examples=(
        "vbfmt bank split adapter.vblora -o thin.vblora --banks banks",
        "vbfmt bank list adapters --banks banks",
    ),
)
def command() -> None:
    """Move vector banks out of packed files and back, and list them.

    An external bank is a file, named by its SHA-256, that many adapters can share. The digest of an
    adapter is the same whether its bank is embedded or external.
    """


_OUTPUT = args.output_option("a packed file (.vblora)", ".vblora")
_FORCE = args.force_option("an existing file")


@command.command(
    "split", examples=("vbfmt bank split adapter.vblora -o thin.vblora --banks banks",)
)
@click.argument("file", metavar="FILE", type=args.PATH)
@_OUTPUT
@click.option(
    "--banks",
    type=args.PATH,
    metavar="DIR",
    help="Folder for the bank; default: the output's folder.",
)
@_FORCE
@args.JSON
def split(file: str, output: str, banks: str | None, overwrite: bool, as_json: bool) -> None:
    """Write FILE without its bank, and the bank as <SHA-256>.bank.

    An existing bank with that name is checked and kept.
    """
    from vbfmt import banks as bank_files
    from vbfmt._files import outputs, parents
    from vbfmt.cli.written import show_written

    outputs.require_file(output, overwrite=overwrite)
    with parents.created(output):
        done = bank_files.split(file, output, banks=banks, overwrite=overwrite)
    show_written(done, output, as_json=as_json)


@command.command("join", examples=("vbfmt bank join thin.vblora -o adapter.vblora --banks banks",))
@click.argument("file", metavar="FILE", type=args.PATH)
@_OUTPUT
@args.BANKS
@_FORCE
@args.JSON
def join(file: str, output: str, banks: tuple[str, ...], overwrite: bool, as_json: bool) -> None:
    """Write FILE with its bank embedded.

    The bank is searched for in --banks, in FILE's folder and in banks/ in that folder.
    """
    from vbfmt import banks as bank_files
    from vbfmt._files import outputs, parents
    from vbfmt.cli.written import show_written

    outputs.require_file(output, overwrite=overwrite)
    with parents.created(output):
        done = bank_files.join(file, output, banks=banks, overwrite=overwrite)
    show_written(done, output, as_json=as_json)


@command.command("list", examples=("vbfmt bank list adapters --banks banks",))
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=args.PATH)
@args.BANKS
@args.JSON
@click.pass_context
def listing(
    ctx: click.Context, paths: tuple[str, ...], banks: tuple[str, ...], as_json: bool
) -> None:
    """List the banks in PATH... and how many adapters need each.

    PATH is a folder (the current one if not given), a packed file or a bank. Exit status 1 if a
    bank is missing or damaged.
    """
    from vbfmt import banks as bank_files

    found = bank_files.listing(paths or (".",), banks=banks)
    for one in found:
        if one.problem is not None:
            in_user_terms(one.problem)
    if as_json:
        show.as_json(
            [
                {
                    "sha256": one.sha256,
                    "bytes": one.size,
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
