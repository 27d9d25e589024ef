"""``vbfmt merge``: adapters and a base model → full weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from vbfmt.cli import arguments as args
from vbfmt.cli import show
from vbfmt.cli.command import Command

if TYPE_CHECKING:
    from vbfmt.converters.merge import Plan


@click.command(
    "merge",
    cls=Command,
    examples=(
        "vbfmt merge adapter.vblora --base model-folder -o merged",
        "vbfmt merge adapter.vblora -o merged --dry-run",
        "vbfmt merge a.vblora b.vblora --weight 0.7 --weight 0.3 --base model -o merged",
    ),
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=args.PACKED)
@click.option(
    "--base",
    type=args.PATH,
    help="The base model's folder or repository.  [default: the repository that FILE names]",
)
@click.option(
    "--base-revision", metavar="REV", help="Branch, tag or commit of the base on the Hub."
)
@args.revision_option("FILEs")
@args.output_option("a folder")
@args.WEIGHTS
@click.option(
    "--dtype",
    type=args.DTYPE,
    help="Dtype of all tensors; by default each keeps its own.",
)
@click.option(
    "--part",
    metavar="PREFIX",
    help="Prefix of the base's part to change, if FILE fits several parts of it.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Refuse a base model unless it is known to be the one that FILE names.",
)
@click.option("--dry-run", is_flag=True, help="Check everything, print the plan, write nothing.")
@args.BANKS
@args.CARD
@click.option(
    "--follow-links",
    is_flag=True,
    help="Copy the targets of links that lead out of the base's folder.",
)
@args.force_option("the output of an earlier merge")
@args.JSON
def command(
    files: tuple[str, ...],
    output: str,
    base: str | None,
    weights: tuple[float, ...],
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Merge adapters into a base model: a folder that loads as if trained in full.

    FILE is a packed file, a checkpoint, - for standard input, or owner/name for a repository on the
    Hugging Face Hub if there is no such path. Tensor names, dtypes and shards stay as in the base;
    tensors that the adapter does not change are copied byte for byte. The whole folder is written,
    or nothing. Several FILEs are merged as the sum of their weight updates, each times its
    --weight. A base from the Hub is taken at the revision that FILE was trained on, unless
    --base-revision is given.
    """
    args.require_weights(weights, files)
    from vbfmt.cli.packed_input import adapter_path
    from vbfmt.cli.progress import shown
    from vbfmt.cli.suggestions import require_base_is_no_adapter
    from vbfmt.cli.written import show_upload_line
    from vbfmt.converters.operations.merge import merge

    require_base_is_no_adapter(base, files)
    options |= {"base": base, "weights": weights, "dry_run": dry_run}
    paths = [adapter_path(file) for file in files]
    with shown("bytes") as progress:
        plan = merge(paths, output, progress=progress, **options)
    if as_json:
        show.as_json({"output": output, "written": not dry_run, **_as_dict(plan)})
        return
    for line in _report(plan, output, dry_run):
        show.say(line)
    if not dry_run:
        show_upload_line(output)


def _report(plan: Plan, output: str, dry_run: bool) -> Iterator[str]:
    yield (
        f"{output}: {'would be ' if dry_run else ''}{show.size(plan.size)}, "
        f"{plan.layout.applied} of {len(plan.factors.modules)} modules applied"
    )
    for file in plan.files:
        yield (
            f"  {file.name}: {show.size(len(file.header) + file.size)}, "
            f"{sum(bool(item.modules) for item in file.items)} of {len(file.items)} tensors changed"
        )
    yield f"  {plan.layout.rule}"
    if plan.layout.prefix:
        yield f"  all tensor names of the base now begin with {plan.layout.prefix}"
    for word, names in (
        ("the adapter's, instead of the base's", plan.layout.replaced),
        ("the adapter's, not in the base", plan.layout.added),
        ("generated", sorted(plan.texts)),
        ("copied", plan.copies),
        ("not copied: old weights, or not regular files", plan.base.left_out),
    ):
        if names:
            yield f"  {word}: {', '.join(names)}"


def _as_dict(plan: Plan) -> dict[str, Any]:
    return {
        "bytes": plan.size,
        "digests": list(plan.digests),
        "modules_applied": plan.layout.applied,
        "modules": len(plan.factors.modules),
        "add_prefix": plan.layout.rule.add,
        "drop_prefix": plan.layout.rule.drop,
        "output_prefix": plan.layout.prefix,
        "files": {
            file.name: {
                "bytes": len(file.header) + file.size,
                "tensors": len(file.items),
                "changed": [item.name for item in file.items if item.modules],
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
