"""What a worker does: one operation on the items of a shard. Imports and runs in any process."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vbfmt._files import staging
from vbfmt.errors import VbfmtError, VbfmtWarning

WRITES = ("pack", "expand", "merge")
"""Operations that write an output for each item."""


@dataclass(frozen=True)
class Item:
    """One input, and where its output goes.

    Attributes:
        source: a path or a repository; for ``diff`` the first of two.
        output: the file or folder to write, or the second file of ``diff``; empty for ``verify``.
        overwrite: replace the output.
        ours: the output was not there when the job began: what is there now, this job has written.
    """

    source: str
    output: str = ""
    overwrite: bool = False
    ours: bool = False

    def again(self) -> Item:
        """The item to be tried once more: a worker that died may have written the output."""
        return replace(self, overwrite=self.overwrite or self.ours)


@dataclass(frozen=True)
class Task:
    """An operation and its options, the same for every item.

    Attributes:
        operation: of `OPERATIONS`.
        options: keyword arguments of the operation's function (`vbfmt.pack`, …).
        store: the store that ``pack`` adds to, in place of writing files; outputs are names then.
    """

    operation: str
    options: Mapping[str, Any] = field(default_factory=dict)
    store: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of an item.

    Attributes:
        source, output: of the item.
        status: ``done``, ``present`` (an earlier run has done it) or ``failed``; for ``diff`` also
            ``different``.
        digest: of the adapter, if there is one.
        kind, message: of the error, for ``failed``; what differs, for ``different``.
        notes: the warnings.
    """

    source: str
    output: str
    status: str
    digest: str | None = None
    kind: str | None = None
    message: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is nothing to mend."""
        return self.status in ("done", "present")


def run_shard(task: Task, shard: Sequence[Item]) -> list[Outcome]:
    """Run the operation on every item; an error is that item's outcome alone."""
    writes = task.operation in WRITES and task.store is None
    with staging.swept(item.output for item in shard if writes):
        return [_run_item(task, item) for item in shard]


def _run_item(task: Task, item: Item) -> Outcome:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            digest, difference = OPERATIONS[task.operation](task, item)
        except (VbfmtError, OSError, MemoryError) as error:
            kind = getattr(error, "kind", "memory" if isinstance(error, MemoryError) else "storage")
            return Outcome(
                item.source, item.output, "failed", kind=kind, message=str(error) or kind
            )
    notes = tuple(str(each.message) for each in caught if issubclass(each.category, VbfmtWarning))
    status = "done" if difference is None else "different"
    return Outcome(item.source, item.output, status, digest, message=difference, notes=notes)


def _pack(task: Task, item: Item) -> tuple[str, None]:
    from vbfmt.converters.operations.pack import pack

    if task.store is None:
        return pack(item.source, item.output, overwrite=item.overwrite, **task.options).digest, None
    from vbfmt.converters import read, sources
    from vbfmt.converters.operations.pack import recorded
    from vbfmt.store import ANY, Store

    options = dict(task.options)
    named = options.pop("base_model", None)
    path = sources.checkpoint(item.source, revision=options.pop("revision", None))
    adapter = recorded(read(path, **options), named)
    with Store(task.store) as store:
        replaces = ANY if item.overwrite else None
        return store.add(adapter, name=item.output, replaces=replaces), None


def _verify(task: Task, item: Item) -> tuple[str | None, None]:
    from vbfmt.packed import verify

    report = verify(item.source, **task.options)
    if report.problems:
        raise report.problems[0]
    return report.digest, None


def _expand(task: Task, item: Item) -> tuple[str, None]:
    from vbfmt.converters.operations.expand import expand

    done = expand(item.source, item.output, overwrite=item.overwrite, **task.options)
    return done.digests[0], None


def _merge(task: Task, item: Item) -> tuple[None, None]:
    from vbfmt.converters.operations.merge import merge

    merge(item.source, item.output, overwrite=item.overwrite, **task.options)
    return None, None


def _diff(task: Task, item: Item) -> tuple[str | None, str | None]:
    from vbfmt.analysis.difference import compare
    from vbfmt.packed import load_with_digest

    (one, digest), (two, other) = load_with_digest(item.source), load_with_digest(item.output)
    if digest == other:
        return digest, None
    lines = list(compare(one, two).lines())
    return digest, (lines or ["the files hold different optional parts"])[0]


OPERATIONS: dict[str, Callable[[Task, Item], tuple[str | None, str | None]]] = {
    "pack": _pack,
    "verify": _verify,
    "expand": _expand,
    "merge": _merge,
    "diff": _diff,
}
"""Operation → function of a task and an item, which returns the digest and what differs."""


def name_of(source: str) -> str:
    """The name of an item's output: that of its file or folder, without ``.vblora``."""
    leaf = os.path.basename(os.path.normpath(source))
    return leaf[: -len(".vblora")] if leaf.lower().endswith(".vblora") else leaf
