"""The journal from which a killed job continues: a file of JSON lines in the output folder.

Before a shard runs, the journal gets a line for each output that does not exist yet. When an item
is done, it gets a line with the fingerprint of the item's source and the adapter's digest; when an
item fails, a line that its output was not written.

When the job runs again, an output that was begun but is not done is written again. One that is done
is left as it is, unless its source has changed. An output without a line was not written by this
job, and is not replaced; nor is one that differs from what the job wrote, such as a packed file
with another digest or a folder with other files.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Any

from vbfmt._files import outputs, storage
from vbfmt.converters.jobs.tasks import Item, Outcome, Task
from vbfmt.errors import StorageError

NAME = ".vbfmt-jobs.jsonl"


class Journal:
    """The journal of one task in one output folder, which is made if it is missing.

    Attributes:
        path: path of the journal's file.

    Raises:
        TargetError: the path exists and is not a folder.
        StorageError: the operating system refused.
    """

    def __init__(self, folder: str, task: Task) -> None:
        outputs.require_folder(folder or os.curdir, overwrite=True)
        try:
            os.makedirs(folder or os.curdir, exist_ok=True)
        except OSError as error:
            raise storage.refusal("cannot write", folder, error) from None
        self.path = os.path.join(folder, NAME)
        self._task = _fingerprint_of_task(task)
        self._packs = task.operation == "pack"
        self._known = self._read()

    def digest_if_done(self, item: Item) -> str | None:
        """Return the digest of an item that an earlier run has done, else None.

        The digest is "" if the operation gives none.
        """
        entry = self._known.get(os.path.basename(item.output))
        if entry is None or not os.path.exists(item.output) or not fingerprint(item.source):
            return None
        if entry.get("done") != self._key(item) or not self._is_as_written(item, entry):
            return None
        return str(entry.get("digest") or "")

    def is_begun(self, item: Item) -> bool:
        """Return whether an earlier run began to write this output, so that it may be replaced."""
        entry = self._known.get(os.path.basename(item.output))
        if entry is None or entry.get("failed"):
            return False
        return "done" not in entry or self._is_as_written(item, entry)

    def _is_as_written(self, item: Item, entry: Mapping[str, Any]) -> bool:
        """Return whether an output still is what the journal says that the job wrote."""
        if self._packs:
            return _digest_of(item.output) == entry.get("digest")
        return fingerprint(item.output) == entry.get("written")

    def begin(self, items: Iterable[Item]) -> None:
        """Record the outputs that are about to be written and do not exist yet."""
        new = [item for item in items if not os.path.lexists(item.output)]
        self._append({"output": os.path.basename(item.output)} for item in new)

    def end(self, pairs: Iterable[tuple[Item, Outcome]]) -> None:
        """Record the items that are done, and those that failed and have written nothing."""
        self._append(
            {"output": os.path.basename(item.output), **self._result(item, outcome)}
            for item, outcome in pairs
            if outcome.kind != "worker"  # a worker that died may have written the output
        )

    def _result(self, item: Item, outcome: Outcome) -> dict[str, Any]:
        if outcome.status != "done":
            return {"failed": True}
        done = {"done": self._key(item), "digest": outcome.digest}
        return done if self._packs else {**done, "written": fingerprint(item.output)}

    def _key(self, item: Item) -> str:
        return f"{self._task}:{fingerprint(item.source)}"

    def _append(self, entries: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        if not text:
            return
        self._require_regular()
        try:
            with open(self.path, "a+b") as stream:
                if stream.tell() and not _ends_whole(stream.name):
                    stream.write(b"\n")  # a line that a killed run left unfinished
                stream.write(text.encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise storage.refusal("cannot write", self.path, error) from None

    def _require_regular(self) -> None:
        """Refuse a link, which would let whoever made the folder choose the file to append to, and
        a pipe or device, which may never end."""
        if os.path.lexists(self.path) and not stat.S_ISREG(os.lstat(self.path).st_mode):
            raise StorageError(
                "the journal of the jobs is not a regular file",
                file=self.path,
                advice="remove it, or choose another output folder",
            )

    def _read(self) -> dict[str, dict[str, Any]]:
        known: dict[str, dict[str, Any]] = {}
        if not os.path.lexists(self.path):
            return known
        self._require_regular()
        with open(self.path, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):  # cut off when a run was killed
                    continue
                if isinstance(entry, dict) and isinstance(entry.get("output"), str):
                    known[entry["output"]] = entry
        return known


def fingerprint(source: str) -> str:
    """Return a hash of the names, sizes and modification times of a source's files.

    Returns:
        32 hexadecimal digits; "" if the source is not a local path. Such a source, a repository,
        may have changed, so an item with it never counts as done.
    """
    found = hashlib.sha256()
    paths = [source]
    if os.path.isdir(source):
        paths += sorted(entry.path for entry in os.scandir(source) if entry.is_file())
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            return ""
        size = 0 if os.path.isdir(path) else status.st_size
        found.update(f"{os.path.basename(path)}\0{size}\0{status.st_mtime_ns}\0".encode())
    return found.hexdigest()[:32]


def _digest_of(path: str) -> str | None:
    """Return the digest of a packed file from its header, None if it is not a packed file."""
    from vbfmt._format.packed_file import PackedFile
    from vbfmt.errors import VbfmtError

    try:
        return PackedFile.parse(storage.read(path, mmap=True)).digest
    except VbfmtError:
        return None


def _fingerprint_of_task(task: Task) -> str:
    text = json.dumps([task.operation, sorted(task.options.items())], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _ends_whole(path: str) -> bool:
    with open(path, "rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"
