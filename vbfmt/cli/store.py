"""``vbfmt store``: many adapters by name and digest."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from vbfmt.cli import arguments as args
from vbfmt.cli import failure, show
from vbfmt.cli.command import Group

if TYPE_CHECKING:
    from vbfmt.errors import VbfmtError
    from vbfmt.store import Entry, Store

_STORE = click.argument("store", metavar="STORE", type=args.PATH)


@click.group(
    "store",
    cls=Group,
    examples=(
        "vbfmt store add adapters alice.vblora --name alice",
        "vbfmt store get adapters alice -o alice.vblora",
    ),
)
def command() -> None:
    """Keep many adapters by name and digest, and their banks once.

    STORE is a folder, or s3://bucket/prefix. An adapter in it never changes; names point to digests
    and can be moved. gc removes what no name, lease or adapter needs, after a grace period.
    """


def _opened(path: str, *, create: bool = False) -> Store:
    from vbfmt.store import Store

    return Store(path, create=create)


@command.command("add", examples=("vbfmt store add adapters alice.vblora --name alice",))
@_STORE
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=args.PATH)
@click.option("--name", "names", multiple=True, help="Name of each FILE, in order.")
@args.BANKS
@click.option("--force", is_flag=True, help="Move existing names.")
@args.JSON
def add(
    store: str,
    files: tuple[str, ...],
    names: tuple[str, ...],
    banks: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Add packed files, under their names if given; create STORE if there is none.

    Each FILE is verified first. Its digest is printed. If a FILE fails, those before it stay added,
    and those after it are not added.
    """
    if names and len(names) != len(files):
        raise click.UsageError(f"{len(names)} --name for {len(files)} files; give one for each")
    from vbfmt.store import ANY

    _require_valid(names)
    answers: list[dict[str, Any]] = []
    try:
        with _opened(store, create=True) as opened:
            for file, name in zip(files, names or (None,) * len(files), strict=True):
                replaces = ANY if force else None
                digest = opened.add(file, name=name, replaces=replaces, banks=banks)
                answers.append({"file": file, "digest": digest, "name": name})
                if not as_json:
                    show.say(f"{digest}  {file}" + (f"  {name}" if name else ""))
    finally:  # before an error, too: so a script knows which files were added
        if as_json and answers:
            show.as_json(answers)


def _require_valid(names: Sequence[str]) -> None:
    """Refuse an invalid name, and names of which two are the same; a store ignores their case."""
    from vbfmt.store import layout

    seen: set[str] = set()
    for name in names:
        layout.require_name(name)
        if name.lower() in seen:
            raise click.UsageError(f"the name {name} is given twice")
        seen.add(name.lower())


@command.command("get", examples=("vbfmt store get adapters alice -o alice.vblora",))
@_STORE
@click.argument("name", metavar="NAME")
@args.output_option("a packed file (.vblora)", ".vblora")
@args.BANK
@args.force_option("an existing file")
@args.JSON
def get(store: str, name: str, output: str, bank: str, overwrite: bool, as_json: bool) -> None:
    """Verify the adapter with that NAME or digest and write it to a file."""
    from vbfmt import banks as bank_files
    from vbfmt._files import outputs, parents
    from vbfmt.cli.written import show_written

    outputs.require_file(output, overwrite=overwrite)
    with _opened(store) as opened, parents.created(output):
        path = opened.path(opened.resolve(name))
        if bank == "embedded":
            done = bank_files.join(path, output, banks=opened, overwrite=overwrite)
        else:
            done = bank_files.split(path, output, look_in=opened, overwrite=overwrite)
    show_written(done, output, as_json=as_json)


@command.command(
    "list", examples=("vbfmt store list adapters --base-model meta-llama/Llama-2-7b-hf",)
)
@_STORE
@click.option("--base-model", help="Only adapters of this base model.")
@click.option("--bank", metavar="SHA-256", help="Only adapters with this bank.")
@click.option(
    "--metadata", metavar="KEY=VALUE", multiple=True, help="Only adapters with this metadata."
)
@click.option("--limit", type=click.IntRange(min=0), help="Maximum number of adapters.")
@args.JSON
@click.pass_context
def listing(
    ctx: click.Context,
    store: str,
    base_model: str | None,
    bank: str | None,
    metadata: tuple[str, ...],
    limit: int | None,
    as_json: bool,
) -> None:
    """List adapters, newest first. Exit status 1 if an adapter or a name is damaged."""
    for text in metadata:
        if "=" not in text:
            raise click.UsageError(f"--metadata must be KEY=VALUE, found {text!r}")
    damaged: list[VbfmtError] = []
    with _opened(store) as opened:
        found = opened.entries(
            base_model=base_model,
            bank=bank,
            metadata=dict(text.split("=", 1) for text in metadata),
            limit=limit,
            damaged=damaged,
        )
    if as_json:
        show.as_json([_as_dict(entry) for entry in found])
    else:
        for entry in found:
            show.say(_line(entry))
    failure.print_each(damaged)
    if damaged:
        ctx.exit(1)


def _as_dict(entry: Entry) -> dict[str, Any]:
    """Return the entry as JSON fields, with the names that other commands use too."""
    fields = dataclasses.asdict(entry)
    renamed = {"size": "bytes", "bank_size": "bank_bytes", "rows": "N"}
    return {renamed.get(name, name): value for name, value in fields.items()}


def _line(entry: Entry) -> str:
    base = entry.base_model or "no base model named"
    names = ", ".join(entry.names) or "no name"
    return f"{entry.digest}  {_time(entry.added)}  {show.size(entry.size)}  {base}  {names}"


def _time(added: float) -> str:
    try:
        return datetime.datetime.fromtimestamp(added).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):  # a file may have any time
        return "unknown time"


@command.command("tag", examples=("vbfmt store tag adapters alice sha256:HEX --force",))
@_STORE
@click.argument("name", metavar="NAME")
@click.argument("target", metavar="DIGEST|NAME")
@click.option("--replaces", metavar="DIGEST", help="Digest that NAME must point to now.")
@click.option("--force", is_flag=True, help="Move NAME, whatever it points to now.")
@args.JSON
def tag(
    store: str, name: str, target: str, replaces: str | None, force: bool, as_json: bool
) -> None:
    """Point NAME to an adapter. NAME must be new, unless --replaces or --force is given."""
    if replaces and force:
        raise click.UsageError("--replaces and --force exclude each other")
    from vbfmt.store import ANY

    with _opened(store) as opened:
        digest = opened.resolve(target)
        opened.tag(name, digest, replaces=ANY if force else replaces)
    if as_json:
        show.as_json({"name": name, "digest": digest})
    else:
        show.say(f"{name} → {digest}")


@command.command("verify", examples=("vbfmt store verify adapters",))
@_STORE
@args.JSON
@click.pass_context
def verify(ctx: click.Context, store: str, as_json: bool) -> None:
    """Check every adapter, bank and name. Exit status 1 if anything is wrong."""
    count, bad = 0, []
    with _opened(store) as opened:
        for report in opened.verify():
            count += 1
            if not report.ok:
                bad.append(report)
                for problem in report.problems:
                    failure.in_user_terms(problem)
                    if not as_json:
                        show.say(f"{report.file}: FAILED, {problem}")
    if as_json:
        problems = [
            {"file": r.file, "digest": r.digest, "problems": [str(p) for p in r.problems]}
            for r in bad
        ]
        show.as_json({"checked": count, "ok": not bad, "failed": problems})
    else:
        show.say(f"{count:,} objects and names checked, {len(bad):,} failed")
    if bad:
        ctx.exit(1)


@command.command("remove", examples=("vbfmt store remove adapters alice",))
@_STORE
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@args.JSON
def remove(store: str, names: tuple[str, ...], as_json: bool) -> None:
    """Remove names. Adapters without a name are removed by a later gc."""
    _require_valid(names)
    removed: dict[str, str] = {}
    try:
        with _opened(store) as opened:
            known = {name: opened.resolve(name) for name in names}  # before any is removed
            for name, digest in known.items():
                opened.untag(name)
                removed[name] = digest
                if not as_json:
                    show.say(f"{name}: removed")
    finally:
        if as_json and removed:
            show.as_json({"removed": removed})


@command.command("gc", examples=("vbfmt store gc adapters",))
@_STORE
@click.option(
    "--grace",
    type=float,
    default=24.0,
    help="Grace period in hours; default: 24. With 0, use it only while nobody else uses STORE.",
)
@args.JSON
def gc(store: str, grace: float, as_json: bool) -> None:
    """Remove what nothing has needed for the grace period.

    The first gc that finds something unneeded notes the time; a later one removes it. --grace 0
    removes it at once. Use that only while no other process uses the store.
    """
    if not 0 <= grace < float("inf"):
        raise click.UsageError("--grace must be a number of hours, 0 or more")
    with _opened(store) as opened:
        done = opened.gc(grace=grace * 3600)
    if as_json:
        show.as_json(dataclasses.asdict(done))
    else:
        objects = show.counted(len(done.removed), "object")
        show.say(
            f"{objects} removed, {show.size(done.bytes)}; {done.waiting:,} unneeded for less than "
            f"the grace period; {done.kept:,} kept"
        )


@command.command("stats", examples=("vbfmt store stats s3://bucket/adapters",))
@_STORE
@args.JSON
def stats(store: str, as_json: bool) -> None:
    """Print counts and sizes."""
    with _opened(store) as opened:
        found = opened.stats()
    if as_json:
        show.as_json(dataclasses.asdict(found))
        return
    show.say(f"{show.counted(found.adapters, 'adapter')}, {show.size(found.adapter_bytes)}")
    show.say(f"{show.counted(found.banks, 'bank')}, {show.size(found.bank_bytes)}")
    show.say(f"{show.counted(found.names, 'name')}")
    show.say(f"{show.counted(found.unreferenced, 'object')} found unneeded, to be removed by gc")
