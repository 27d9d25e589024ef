"""``vbfmt plot``: pictures of what an adapter has learned."""

from __future__ import annotations

import click


@click.command("plot")
@click.argument("file", type=click.Path())
@click.option(
    "-o", "--output", required=True, type=click.Path(), help="A .png, .svg or .html file."
)
@click.option(
    "--figure",
    "figures",
    multiple=True,
    metavar="NAME",
    help="One figure alone: usage, norms, depth, kinds, selection, projection or delta.",
)
@click.option(
    "--before",
    type=click.Path(),
    metavar="FILE",
    help="The adapter at an earlier time: shows which selections changed.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
def command(
    file: str, output: str, figures: tuple[str, ...], before: str | None, force: bool
) -> None:
    """Draw the packed adapter FILE: one page with all figures, or one of them.

    An .html is one file that opens offline and shows values under the pointer. Needs matplotlib:
    pip install 'vbfmt[plot]'.
    """
    from vbfmt import storage
    from vbfmt.cli.show import size, weight_of
    from vbfmt.errors import TargetError, VbfmtError
    from vbfmt.packed import load

    if not force:
        storage.require_absent(output)
    try:
        from vbfmt.plot import Scene, write
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise TargetError(
            "pictures need matplotlib, which is not installed", advice="pip install 'vbfmt[plot]'"
        ) from None
    adapter = load(file)
    try:
        scene = Scene(adapter, file, load(before) if before else None)
    except VbfmtError as error:
        raise error.in_file(before or file) from None
    write(scene, output, figures=figures, overwrite=force)
    click.echo(f"{output}: {size(weight_of(output))}")
