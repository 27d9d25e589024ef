"""``vbfmt diff``: what differs between two packed adapters."""

from __future__ import annotations

import dataclasses

import click

from vbfmt.cli.arguments import BANKS, PATH

_SHOWN = 20


@click.command("diff")
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@BANKS
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.pass_context
def command(ctx: click.Context, a: str, b: str, banks: tuple[str, ...], as_json: bool) -> None:
    """What differs between the packed adapters A and B, by part and module.

    Exit status 0 if nothing does, 1 if something does, or if A or B cannot be read: then nothing is
    printed but a line "error: …" on stderr, with --json too. 2 is wrong usage.
    """
    from vbfmt.analysis.difference import compare
    from vbfmt.cli import show
    from vbfmt.packed import load

    difference = compare(load(a, banks=banks), load(b, banks=banks))
    if as_json:
        show.as_json({"same": difference.same, **dataclasses.asdict(difference)})
    elif difference.same:
        show.say(f"{a} and {b} say the same")
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
