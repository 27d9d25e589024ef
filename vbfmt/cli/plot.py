"""``vbfmt plot``: pictures of what an adapter has learned."""

from __future__ import annotations

import click

from vbfmt.cli.arguments import BANKS, FIGURES, PATH

_SUFFIXES = (".png", ".svg", ".html")


def _picture(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not value.lower().endswith(_SUFFIXES):
        raise click.BadParameter(f"{value!r} does not end with {', '.join(_SUFFIXES)}", ctx, param)
    return value


@click.command("plot")
@click.argument("file", type=PATH)
@click.option(
    "-o",
    "--output",
    required=True,
    type=PATH,
    callback=_picture,
    help="A .png, .svg or .html file.",
)
@click.option(
    "--figure",
    "figures",
    multiple=True,
    type=click.Choice(FIGURES),
    help="This figure alone.",
)
@click.option(
    "--before",
    type=PATH,
    metavar="FILE",
    help="The adapter at an earlier time: shows which selections changed.",
)
@BANKS
@click.option("--force", is_flag=True, help="Replace an existing file.")
def command(
    file: str,
    output: str,
    figures: tuple[str, ...],
    before: str | None,
    banks: tuple[str, ...],
    force: bool,
) -> None:
    """Draw the packed adapter FILE: one page with all figures, or one of them.

    An .html is one file that opens offline and shows values under the pointer. Needs matplotlib:
    pip install 'vbfmt[plot]'.
    """
    from vbfmt.cli import place
    from vbfmt.cli.show import say, size
    from vbfmt.errors import MissingExtraError, VbfmtError
    from vbfmt.packed import load

    place.require_file(output, force=force)
    place.require_not_read(output, [file, *([before] if before else [])])
    try:
        from vbfmt.plot import Scene, write
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise MissingExtraError.of("pictures need matplotlib", "plot") from None
    adapter = load(file, banks=banks)
    try:
        scene = Scene(adapter, file, load(before, banks=banks) if before else None)
    except VbfmtError as error:
        raise error.in_file(before or file) from None
    written = write(scene, output, figures=figures, overwrite=force)
    say(f"{output}: {size(written)}")
