"""``vbfmt plot``: pictures of what an adapter has learned."""

from __future__ import annotations

import click

from vbfmt.cli import arguments as args
from vbfmt.cli import show
from vbfmt.cli.command import Command


@click.command(
    "plot",
    cls=Command,
    examples=(
        "vbfmt plot adapter.vblora -o page.html",
        "vbfmt plot adapter.vblora --figure kinds -o kinds.png",
        "vbfmt plot after.vblora --before before.vblora -o page.html",
    ),
)
@click.argument("file", type=args.PACKED)
@args.output_option("a picture (.png, .svg or .html)", ".png", ".svg", ".html", required=True)
@click.option(
    "--figure",
    "figures",
    multiple=True,
    type=click.Choice(args.FIGURES, case_sensitive=False),
    help="Draw only this figure. May be repeated.",
)
@click.option(
    "--before",
    type=args.PACKED,
    metavar="FILE",
    help="An earlier state of the adapter, to show which selections have changed.",
)
@args.revision_option("FILE")
@args.BANKS
@args.force_option("an existing file")
@args.JSON
def command(
    file: str,
    output: str,
    figures: tuple[str, ...],
    before: str | None,
    revision: str | None,
    banks: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
) -> None:
    """Draw the adapter FILE: one page with all figures, or one of them.

    FILE is a packed file, a checkpoint, - for standard input, or owner/name for a repository on the
    Hugging Face Hub if there is no such path.

    An .html file opens offline and shows the value under the pointer. The command needs matplotlib:
    pip install 'vbfmt[plot]'.
    """
    import logging

    from vbfmt._files import outputs, parents
    from vbfmt.cli.packed_input import adapter_at
    from vbfmt.cli.progress import shown
    from vbfmt.errors import MissingExtraError, in_file

    # Matplotlib warns if it cannot write its cache, or if filling it takes long.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    outputs.require_file(output, overwrite=overwrite)
    outputs.require_no_input(output, [file, *([before] if before else [])])
    try:
        from vbfmt.plot import Scene, write
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise MissingExtraError.of("pictures need matplotlib", "plot") from None
    adapter = adapter_at(file, revision=revision, banks=banks)
    with in_file(before or file):
        earlier = adapter_at(before, revision=revision, banks=banks) if before else None
        scene = Scene(adapter, file, earlier)
    with parents.created(output), shown("figures") as progress:
        written = write(scene, output, figures=figures, overwrite=overwrite, progress=progress)
    if as_json:
        from vbfmt.packed import digest

        show.as_json({"output": output, "digest": digest(adapter), "bytes": written})
        return
    show.say(f"{output}: {show.size(written)}")
