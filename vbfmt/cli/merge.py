"""``vbfmt merge``: packed files and a base model → full weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from vbfmt.cli.arguments import BANKS, PATH, WEIGHTS

if TYPE_CHECKING:
    from vbfmt.converters.merge import Plan


@click.command("merge")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=PATH)
@click.option("--base", required=True, type=PATH, help="The base model's folder or name.")
@click.option("--base-revision", metavar="REV", help="Of the base on the Hub.")
@click.option("--revision", metavar="REV", help="Of FILEs on the Hub: a branch, tag or commit.")
@click.option("-o", "--output", required=True, type=PATH, help="The folder to write.")
@WEIGHTS
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of all tensors; without it, each keeps its own.",
)
@click.option("--strict", is_flag=True, help="Refuse a base not known to be the one FILE names.")
@click.option("--dry-run", is_flag=True, help="Check all but the sums and say what would happen.")
@BANKS
@click.option("--card", is_flag=True, help="Write a model card (README.md) for the Hub, too.")
@click.option(
    "--follow-links", is_flag=True, help="Copy what links of the base outside its folder lead to."
)
@click.option("--force", is_flag=True, help="Replace the output of an earlier merge.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def command(
    files: tuple[str, ...],
    base: str,
    base_revision: str | None,
    revision: str | None,
    output: str,
    weights: tuple[float, ...],
    dtype: str | None,
    strict: bool,
    dry_run: bool,
    banks: tuple[str, ...],
    card: bool,
    follow_links: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Merge packed adapters into a base model: a folder that loads as if trained in full.

    Names, dtypes and shards stay as they are in the base; what is not changed is copied byte for
    byte. The whole folder is written, or nothing. Several FILEs merge as the sum of their changes,
    each times its --weight. Where there is no such path, owner/name is a repository on the Hugging
    Face Hub; of a base, the revision that FILE was trained on is taken unless --base-revision is
    given.
    """
    if weights and len(weights) != len(files):
        raise click.UsageError(f"{len(weights)} --weight for {len(files)} files")
    from vbfmt.cli import show
    from vbfmt.converters import merge, sources
    from vbfmt.packed import load

    adapters = [load(sources.packed(file, revision=revision), banks=banks) for file in files]
    trained_on = base_revision or sources.revision_for(base, adapters)
    model = sources.model(base, revision=trained_on)
    plan = merge.plan(
        adapters,
        model,
        weights=weights,
        dtype=dtype,
        strict=strict,
        card=card,
        follow_links=follow_links,
    )
    merge.require_place(plan, output, overwrite=force)
    for notice in plan.notices:
        show.note(notice)
    if not dry_run:
        with _progress(plan.size) as told:
            merge.write(plan, output, overwrite=force, progress=told)
    if as_json:
        show.as_json({"output": output, "written": not dry_run, **_as_dict(plan)})
        return
    for line in _report(plan, output, dry_run):
        show.say(line)


def _report(plan: Plan, output: str, dry_run: bool) -> Iterator[str]:
    from vbfmt.cli.show import size

    yield (
        f"{output}: {'would be ' if dry_run else ''}{size(plan.size)}, "
        f"{plan.layout.applied} of {len(plan.factors.modules)} modules applied"
    )
    for file in plan.files:
        yield (
            f"  {file.name}: {size(len(file.header) + file.size)}, "
            f"{file.changed} of {len(file.items)} tensors changed"
        )
    yield f"  {plan.layout.rule}"
    if plan.layout.prefix:
        yield f"  all of the base's names now begin with {plan.layout.prefix}"
    for word, names in (
        ("trained, in place of the base's", plan.layout.replaced),
        ("trained, and not in the base", plan.layout.added),
        ("made", sorted(plan.texts)),
        ("copied", plan.copies),
        ("left behind: old weights, or no regular files", plan.base.left_out),
    ):
        if names:
            yield f"  {word}: {', '.join(names)}"


def _as_dict(plan: Plan) -> dict[str, Any]:
    return {
        "bytes": plan.size,
        "modules_applied": plan.layout.applied,
        "modules": len(plan.factors.modules),
        "add_prefix": plan.layout.rule.add,
        "drop_prefix": plan.layout.rule.drop,
        "output_prefix": plan.layout.prefix,
        "files": {
            file.name: {
                "bytes": len(file.header) + file.size,
                "tensors": len(file.items),
                "changed": [item.name for item in file.items if item.module is not None],
            }
            for file in plan.files
        },
        "replaced": list(plan.layout.replaced),
        "added": list(plan.layout.added),
        "made": sorted(plan.texts),
        "copied": list(plan.copies),
        "left_out": list(plan.base.left_out),
        "notices": list(plan.notices),
    }


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None] | None]:
    """A bar with bytes and rate on a terminal, nothing in a pipe."""
    import sys
    import time

    from vbfmt.cli.show import size

    if not sys.stderr.isatty():
        yield None
        return
    start = time.monotonic()

    def reached(done: int | None) -> str | None:
        rate = (done or 0) / max(time.monotonic() - start, 1e-9)
        return f"{size(done or 0)} of {size(total)}, {size(rate)}/s"

    with click.progressbar(
        length=total, item_show_func=reached, show_pos=False, file=sys.stderr
    ) as bar:
        done = 0

        def told(count: int) -> None:
            nonlocal done
            done += count
            bar.update(count, done)

        yield told
