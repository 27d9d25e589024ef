"""Run an operation on the items of a shard, in a worker process."""

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
    """An input of a job and its output.

    Attributes:
        source: a path or a repository; for ``diff``, the first file.
        output: the file or folder to write; for ``diff``, the second file; for ``verify``, empty.
        overwrite: whether an existing output is replaced.
        absent_before: whether the output did not exist when the job began. If it exists later, this
            job wrote it.
    """

    source: str
    output: str = ""
    overwrite: bool = False
    absent_before: bool = False

    def for_retry(self) -> Item:
        """Return the item for a retry, which may replace what a worker wrote before it died."""
        return replace(self, overwrite=self.overwrite or self.absent_before)


@dataclass(frozen=True)
class Task:
    """An operation and its options, which are the same for every item.

    Attributes:
        operation: name of an operation in `OPERATIONS`.
        options: keyword arguments for the operation's function (`vbfmt.pack`, …).
        store: path of a store. ``pack`` adds the adapters to it instead of writing files. The
            items' outputs are then names in the store.
    """

    operation: str
    options: Mapping[str, Any] = field(default_factory=dict)
    store: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The outcome of an item.

    Attributes:
        source, output: the item's source and output.
        status: ``done``, ``present`` (done by an earlier run) or ``failed``; for ``diff``, also
            ``different``.
        digest: the adapter's digest, if there is one.
        kind: the error's kind, if `status` is ``failed``.
        message: if `status` is ``failed``, the error's message without the source; if it is
            ``different``, the first difference.
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
        """Whether the item neither failed nor differs."""
        return self.status in ("done", "present")


def run_shard(task: Task, shard: Sequence[Item]) -> list[Outcome]:
    """Run the operation on every item. An error affects only the outcome of its item."""
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
            message = _message(error, item) or kind
            return Outcome(item.source, item.output, "failed", kind=kind, message=message)
    notes = tuple(str(each.message) for each in caught if issubclass(each.category, VbfmtWarning))
    status = "done" if difference is None else "different"
    return Outcome(item.source, item.output, status, digest, message=difference, notes=notes)


def _message(error: Exception, item: Item) -> str:
    """Return an error's message, without the name of its file if that is the item's source."""
    if isinstance(error, VbfmtError) and error.file == item.source:
        return error.detail()
    return str(error)


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
    from vbfmt.packed import load_with_form

    one, digest, _ = load_with_form(item.source, **task.options)
    two, other, _ = load_with_form(item.output, **task.options)
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
"""Operation → function that runs it on an item and returns the digest and the first difference."""

MODULES = {
    "pack": ["vbfmt.converters.operations.pack", "vbfmt.converters.peft"],
    "verify": ["vbfmt.packed"],
    "expand": ["vbfmt.converters.operations.expand"],
    "merge": ["vbfmt.converters.operations.merge"],
    "diff": ["vbfmt.packed", "vbfmt.analysis.difference"],
}
"""Operation → modules that it imports when it is first used."""


def name_of(source: str) -> str:
    """Return the default name of a source's output: the source's name without ``.vblora``.

    It is one path component, or empty for the root of the file system.
    """
    leaf = os.path.basename(os.path.normpath(source))
    if leaf in ("", os.curdir, os.pardir):
        return os.path.basename(os.path.realpath(source))
    stem = leaf[: -len(".vblora")] if leaf.lower().endswith(".vblora") else leaf
    return stem or leaf
