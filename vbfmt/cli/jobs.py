"""``vbfmt jobs``: run a command on many adapters."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from vbfmt.cli import arguments as args
from vbfmt.cli import failure, process, progress, show
from vbfmt.cli.command import Group
from vbfmt.cli.translation import in_options

if TYPE_CHECKING:
    from vbfmt.converters.jobs import Item, Outcome, Task
    from vbfmt.errors import VbfmtError
    from vbfmt.store import Store

_ENGINES = ("pool", "ray")
"""The keys of `vbfmt.converters.jobs.ENGINES`."""


@click.group(
    "jobs",
    cls=Group,
    examples=(
        "vbfmt jobs pack 'checkpoints/*' -o packed",
        "vbfmt jobs verify 'packed/*.vblora' -j 8",
    ),
)
def command() -> None:
    """Run a command on many adapters, in parallel.

    Inputs are paths, patterns in quotes, - for paths on standard input, one a line, and, except
    for pack, the adapters of a store (--from-store). If an input fails, the others are still
    processed. A job that was stopped continues when it is started again. Exit status 0 if all
    inputs succeed, else 1.
    """


def _options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the arguments that every job has."""
    for option in (
        click.argument("sources", metavar="[SRC]...", nargs=-1),
        click.option(
            "-j", "--jobs", "workers", type=click.IntRange(min=1), help="Number of processes."
        ),
        click.option(
            "--engine",
            type=click.Choice(_ENGINES),
            default="pool",
            show_default=True,
            help="pool: processes; ray: the cluster at RAY_ADDRESS, or one that is started here.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line."),
    ):
        function = option(function)
    return function


def _from_store(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of jobs on packed files."""
    for option in (
        click.option(
            "--from-store",
            metavar="STORE",
            type=args.PATH,
            help="Use the named adapters of a store.",
        ),
        click.option(
            "--base-is", metavar="NAME", help="With --from-store: only adapters of this base model."
        ),
        args.BANKS,
    ):
        function = option(function)
    return function


_OUTPUT = click.option(
    "-o", "--output", required=True, type=args.PATH, help="The folder for all outputs."
)
_FORCE = click.option("--force", is_flag=True, help="Replace existing outputs.")


@command.command(
    "pack",
    examples=(
        "vbfmt jobs pack 'checkpoints/*' -o packed",
        "vbfmt jobs pack 'checkpoints/*' --store adapters",
        "vbfmt jobs pack - -o packed < list-of-checkpoints",
    ),
)
@_options
@click.option("-o", "--output", type=args.PATH, help="The folder for the packed files.")
@click.option(
    "--store", type=args.PATH, help="Add the adapters to this store instead; create it if needed."
)
@args.BANK
@args.TOPK
@click.option("--layout", type=args.LAYOUT, help="The layout of the inputs.")
@click.option("--base-model", metavar="NAME", help="The base model's name to record.")
@_FORCE
@click.pass_context
def pack(
    ctx: click.Context,
    /,
    output: str | None,
    store: str | None,
    bank: str,
    **options: Any,
) -> None:
    """Pack every checkpoint into OUTPUT/NAME.vblora, or into a store under NAME."""
    if (output is None) == (store is None):
        raise click.UsageError("give either -o FOLDER or --store STORE")
    if store is None:
        options["bank"] = bank
    elif bank != "embedded":
        raise click.UsageError("--bank needs -o: a store keeps every bank once")
    _run(ctx, "pack", output or "", store=store, **options)


@command.command("verify", examples=("vbfmt jobs verify 'packed/*.vblora' -j 8",))
@_options
@_from_store
@click.pass_context
def verify(ctx: click.Context, /, **options: Any) -> None:
    """Check every digest and every rule of every packed file."""
    _run(ctx, "verify", None, **options)


@command.command("expand", examples=("vbfmt jobs expand 'packed/*.vblora' -o loras --dtype bf16",))
@_options
@_from_store
@_OUTPUT
@click.option(
    "--dtype", type=args.DTYPE, default="float32", show_default=True, help="Dtype of factors."
)
@click.option(
    "--to", type=click.Choice(["peft", "gguf", "mlx"]), help="As for expand.  [default: peft]"
)
@click.option(
    "--base", type=args.PATH, help="For gguf: the base model's folder, repository or file."
)
@click.option("--drop-extras", is_flag=True, help="Leave out trained biases and heads.")
@_FORCE
@click.pass_context
def expand(ctx: click.Context, /, output: str, **options: Any) -> None:
    """Expand every adapter into standard LoRA, as OUTPUT/NAME."""
    _run(ctx, "expand", output, **options)


@command.command("merge", examples=("vbfmt jobs merge 'packed/*.vblora' --base model -o merged",))
@_options
@_from_store
@_OUTPUT
@click.option("--base", type=args.PATH, required=True, help="The base model's folder.")
@_FORCE
@click.pass_context
def merge(ctx: click.Context, /, output: str, **options: Any) -> None:
    """Merge every adapter on its own into the base model, as OUTPUT/NAME."""
    _run(ctx, "merge", output, **options)


@command.command("diff", error_status=2, examples=("vbfmt jobs diff 'old/*.vblora' --with new",))
@_options
@_from_store
@click.option("--with", "other", required=True, type=args.PATH, help="The folder to compare with.")
@click.pass_context
def diff(ctx: click.Context, /, other: str, **options: Any) -> None:
    """Compare every packed file with the one of the same name in another folder."""
    _run(ctx, "diff", other, **options)


def _run(
    ctx: click.Context,
    operation: str,
    output: str | None,
    *,
    sources: Sequence[str],
    workers: int | None,
    engine: str,
    as_json: bool,
    from_store: str | None = None,
    base_is: str | None = None,
    banks: tuple[str, ...] = (),
    force: bool = False,
    store: str | None = None,
    **options: Any,
) -> None:
    """Run a job. `options` are those of the operation itself."""
    from vbfmt.converters import jobs
    from vbfmt.converters.jobs.inputs import is_folder_of_packed

    if "-" in sources and "stdin" in process.closed:
        raise click.UsageError("- reads standard input, which is closed")
    if base_is is not None and from_store is None:
        raise click.UsageError("--base-is needs --from-store")
    if banks and from_store is not None:
        raise click.UsageError("--banks and --from-store exclude each other: a store has its banks")
    if not sources and from_store is None:
        raise click.UsageError("no inputs: give SRC... or --from-store")
    given = {name: value for name, value in options.items() if value is not None}
    if operation != "pack":
        for source in filter(is_folder_of_packed, sources):
            pattern = os.path.join(source, "*.vblora")
            raise click.UsageError(f"{source} is a folder of packed files; give them: '{pattern}'")
    found = jobs.collected(sources, sys.stdin)
    names: dict[str, str] = {}
    damaged: list[VbfmtError] = []
    if banks:
        given["banks"] = banks
    if from_store is not None:
        from vbfmt.store import Store

        with Store(from_store) as opened:
            names = _in_store(opened, base_is, damaged)
        given["banks"] = opened
    task = jobs.Task(operation, given, store)
    items = _items(task, [*found, *names], names, output, force=force)
    counts: dict[str, int] = {}
    with progress.shown("adapters") as advance:
        for outcome in jobs.run(task, items, workers=workers, engine=engine):
            counts[outcome.status] = counts.get(outcome.status, 0) + 1
            _show(outcome, names, as_json=as_json)
            if advance is not None:
                advance(1, len(items))
    if base_is is not None and not items:
        show.note(
            f"no named adapter in {from_store} has the base model {base_is}; "
            "vbfmt store list shows them"
        )
    _summarize(counts, as_json=as_json)
    failure.print_each(damaged)
    if damaged or set(counts) - {"done", "present"}:
        ctx.exit(1)


def _items(
    task: Task, found: Sequence[str], names: Mapping[str, str], output: str | None, *, force: bool
) -> list[Item]:
    from vbfmt.converters import jobs

    if output is None:
        return [jobs.Item(source) for source in found]
    if task.operation == "diff":
        files = {source: f"{name}.vblora" for source, name in names.items()}
        return [
            jobs.Item(each, os.path.join(output, files.get(each, os.path.basename(each))))
            for each in found
        ]
    return jobs.items(found, output, task, overwrite=force, names=names)


def _in_store(store: Store, base: str | None, damaged: list[VbfmtError]) -> dict[str, str]:
    """Return the name of the output for the path of each named adapter in a store.

    In these names, ``__`` replaces ``/``. Errors of damaged adapters and names are appended to
    `damaged`.
    """
    return {
        store.path(entry.digest): entry.names[0].replace("/", "__")
        for entry in store.entries(base_model=base, damaged=damaged)
        if entry.names
    }


def _show(outcome: Outcome, names: Mapping[str, str] = {}, *, as_json: bool) -> None:
    """Print an outcome, with options instead of parameters in its texts. `names` has the names of
    inputs from a store."""
    outcome = replace(
        outcome,
        message=outcome.message and in_options(outcome.message),
        notes=tuple(map(in_options, outcome.notes)),
    )
    if as_json:
        show.as_json_line(asdict(outcome))
        return
    source = names.get(outcome.source, outcome.source)
    for note in outcome.notes:
        show.note(f"{source}: {note}")
    name = outcome.output or outcome.source
    if outcome.ok:
        show.detail(f"{name}: {outcome.status}" + (f", {outcome.digest}" * bool(outcome.digest)))
    else:
        show.say_always(f"{source}: {outcome.status.upper()}, {outcome.message}")


def _summarize(counts: dict[str, int], *, as_json: bool) -> None:
    if as_json:
        return
    order = ("done", "present", "different", "failed")
    words = {"present": "done before"}
    parts = [
        f"{counts[status]:,} {words.get(status, status)}" for status in order if status in counts
    ]
    show.say(", ".join(parts) or "nothing to do: there are no inputs")
