"""``vbfmt diff``: what differs between two adapters."""

from __future__ import annotations

import dataclasses

import click

from vbfmt.cli import arguments as args
from vbfmt.cli import show
from vbfmt.cli.command import Command

_SHOWN = 20
"""Modules that are printed without --json."""


@click.command(
    "diff",
    cls=Command,
    has_jobs=True,
    error_status=2,
    examples=(
        "vbfmt diff before.vblora after.vblora",
        "vbfmt diff me/adapter adapter.vblora --json",
        "vbfmt diff checkpoint adapter.vblora -q && echo the same",
    ),
)
@click.argument("a", type=args.PACKED)
@click.argument("b", type=args.PACKED)
@args.revision_option("A and B")
@args.BANKS
@args.JSON
@click.pass_context
def command(
    ctx: click.Context, a: str, b: str, revision: str | None, banks: tuple[str, ...], as_json: bool
) -> None:
    """Show what differs between the adapters A and B, by part and module.

    A and B are packed files, checkpoints, - for standard input, or owner/name for a repository on
    the Hugging Face Hub if there is no such path. The exit status is that of diff(1): 0 if nothing
    differs, 1 if something does, 2 after an error or wrong usage.
    """
    from vbfmt.analysis.difference import compare
    from vbfmt.cli.packed_input import adapter_at
    from vbfmt.packed import digest

    one, other = (adapter_at(file, revision=revision, banks=banks) for file in (a, b))
    difference = compare(one, other)
    if as_json:
        show.as_json(
            {
                "same": difference.same,
                "digests": [digest(one), digest(other)],
                **dataclasses.asdict(difference),
            }
        )
    elif difference.same:
        show.say(f"{a} and {b} hold the same adapter")
    else:
        for line in difference.lines():
            show.say(line)
        for module in difference.modules[:_SHOWN]:
            detail = module.shapes or (
                f"largest difference {module.largest_factor:.3g} of a factor, "
                f"{module.largest_weight or 0:.3g} of a weight; "
                f"{module.rows_reselected or 0} rows select other vectors"
            )
            show.say(f"  {module.name}: {detail}")
        if len(difference.modules) > _SHOWN:
            show.say(f"  … and {len(difference.modules) - _SHOWN} more (--json lists all)")
    if not difference.same:
        ctx.exit(1)
