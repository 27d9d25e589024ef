"""The journal lets a killed job continue. It is a file of JSON lines in the output folder.

Before a shard runs, the journal gets a line for each output that does not exist yet. When an item
is done, the journal gets a line with the fingerprint of the item's source and the adapter's digest.
When an item fails, it gets a line that says that the output was not written.

When the job runs again, it writes outputs that were begun but not completed. A completed output is
kept, unless its source has changed. An output without a line was not written by this job and is not
replaced. Nor is an output that has changed since the job wrote it, such as a packed file with
another digest or a folder with other files.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, TypedDict, cast

from vbfmt._files import outputs, storage
from vbfmt.converters.jobs import fingerprints
from vbfmt.converters.jobs.tasks import Item, Outcome, Task
from vbfmt.errors import StorageError
from vbfmt.store.layout import is_digest

NAME = ".vbfmt-jobs.jsonl"

LONGEST_LINE = 16_384
"""Largest length of a line in bytes. Longer lines are ignored: a line that a job writes takes about
500 bytes, and less than 2,000 with the longest file name."""

LARGEST = 1 << 30
"""Largest size of a journal in bytes, enough for two million items."""

_DONE = re.compile(r"[0-9a-f]{16}:[0-9a-f]{32}")
_WRITTEN = re.compile(r"[0-9a-f]{32}")


class Journal:
    """The journal of one task in one output folder. The folder is created if it is missing.

    Attributes:
        path: path of the journal's file.

    Raises:
        TargetError: the path exists and is not a folder.
        StorageError: the operating system reported an error.
    """

    def __init__(self, folder: str, task: Task) -> None:
        outputs.require_folder(folder or os.curdir, overwrite=True)
        with storage.refusing("cannot write", folder):
            os.makedirs(folder or os.curdir, exist_ok=True)
        self.path = os.path.join(folder, NAME)
        self._task = fingerprints.of_task(task)
        self._packs = task.operation == "pack"
        self._banks = task.options.get("banks")
        self._keys: dict[str, str] = {}
        self._known = self._read()

    def digest_if_done(self, item: Item) -> str | None:
        """Return the digest of an item that an earlier run has completed, else None.

        The digest is "" if the operation returns none.
        """
        entry = self._known.get(os.path.basename(item.output))
        if entry is None or not os.path.exists(item.output):
            return None
        key = self._key(item)
        if key.endswith(":") or entry.get("done") != key or not self._is_as_written(item, entry):
            return None
        if self._packs and fingerprints.lacks_bank(item.output, self._banks):
            return None
        return entry.get("digest") or ""

    def is_begun(self, item: Item) -> bool:
        """Return whether an earlier run began to write this output, so that it may be replaced."""
        entry = self._known.get(os.path.basename(item.output))
        if entry is None or entry.get("failed"):
            return False
        return "done" not in entry or self._is_as_written(item, entry)

    def _is_as_written(self, item: Item, entry: Entry) -> bool:
        """Return whether an output is unchanged since the job wrote it."""
        if self._packs:
            return fingerprints.digest_of(item.output) == entry.get("digest")
        return fingerprints.of_output(item.output) == entry.get("written")

    def begin(self, items: Iterable[Item]) -> None:
        """Record the outputs that do not exist yet and are about to be written."""
        items = list(items)
        for item in items:
            self._key(item)
        new = [item for item in items if not os.path.lexists(item.output)]
        self._append({"output": os.path.basename(item.output)} for item in new)

    def end(self, pairs: Iterable[tuple[Item, Outcome]]) -> None:
        """Record the items that are done, and those that failed without writing an output."""
        self._append(
            {"output": os.path.basename(item.output), **self._result(item, outcome)}
            for item, outcome in pairs
            if outcome.kind != "worker"  # a worker that died may have written the output
        )

    def _result(self, item: Item, outcome: Outcome) -> dict[str, Any]:
        if outcome.status != "done":
            return {"failed": True}
        done = {"done": self._key(item), "digest": outcome.digest}
        if self._packs:
            return done
        return {**done, "written": fingerprints.of_output(item.output)}

    def _key(self, item: Item) -> str:
        """Return the fingerprint of the task and of an item's source, as it was at the first call.

        So if a source changes while it is read, the item does not count as done.
        """
        if item.source not in self._keys:
            self._keys[item.source] = f"{self._task}:{fingerprints.of_source(item.source)}"
        return self._keys[item.source]

    def _append(self, entries: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        if not text:
            return
        with (
            storage.refusing("cannot write", self.path),
            self._opened("a+b", os.O_RDWR | os.O_CREAT | os.O_APPEND) as stream,
        ):
            if stream.seek(0, os.SEEK_END) and not _ends_whole(stream):
                stream.write(b"\n")  # ends a line that a killed run left unfinished
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())

    def _opened(self, mode: str, flags: int) -> BinaryIO:
        """Open the journal.

        A link is refused, because whoever created the folder could choose the file to append to. A
        pipe or a device is refused, because reading it may never end.

        Raises:
            StorageError: the journal is not a regular file, or is too long.
            OSError: the operating system reported an error.
        """
        if os.path.islink(self.path):  # where O_NOFOLLOW is unknown
            raise self._irregular()
        try:
            file = os.open(self.path, flags | _UNFOLLOWED, 0o666)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
                raise self._irregular() from None
            raise
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and status.st_size <= LARGEST:
            return cast(BinaryIO, os.fdopen(file, mode))
        os.close(file)
        if not stat.S_ISREG(status.st_mode):
            raise self._irregular()
        raise StorageError(
            "the job's journal is too long",
            file=self.path,
            found=f"{status.st_size} bytes",
            expected=f"at most {LARGEST}",
            advice="choose another output folder",
        )

    def _irregular(self) -> StorageError:
        return StorageError(
            "the job's journal is not a regular file",
            file=self.path,
            advice="remove it, or choose another output folder",
        )

    def _read(self) -> dict[str, Entry]:
        known: dict[str, Entry] = {}
        try:
            stream = self._opened("rb", os.O_RDONLY)
        except FileNotFoundError:
            return known
        except OSError as error:
            raise storage.refusal("cannot read", self.path, error) from None
        with stream:
            for line in _lines(stream):
                try:
                    entry = _parsed(line)
                except (ValueError, TypeError, KeyError, RecursionError):
                    continue  # truncated when a run was killed, or not written by a job
                if entry.get("failed") and "done" in known.get(entry["output"], {}):
                    continue  # nothing was written, so the output is still that of the earlier run
                known[entry["output"]] = entry
        return known


class Entry(TypedDict, total=False):
    """A line of the journal.

    Attributes:
        output: name of the output.
        done: fingerprint of the task and the source, if the item is done.
        digest: the adapter's digest, if the operation returns one.
        written: fingerprint of the output, if it is not a packed file.
        failed: whether the item failed without writing an output.
    """

    output: str
    done: str
    digest: str | None
    written: str
    failed: bool


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a journal, except those that are too long."""
    while line := stream.readline(LONGEST_LINE):
        if line.endswith(b"\n") or len(line) < LONGEST_LINE:
            yield line
            continue
        while (rest := stream.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
            pass


def _parsed(line: bytes) -> Entry:
    """Parse a line.

    Raises:
        ValueError, TypeError, KeyError, RecursionError: the line was not written by a job.
    """
    found = json.loads(line)
    entry: Entry = {"output": found["output"]}
    if not isinstance(entry["output"], str):
        raise TypeError("output")
    if found.get("failed") is True:
        entry["failed"] = True
    elif "done" in found:
        digest = found.get("digest")
        if not _DONE.fullmatch(found["done"]) or not (digest in (None, "") or is_digest(digest)):
            raise ValueError("done")
        entry["done"], entry["digest"] = found["done"], digest
        if "written" in found:
            if not _WRITTEN.fullmatch(found["written"]):
                raise ValueError("written")
            entry["written"] = found["written"]
    return entry


def _ends_whole(stream: BinaryIO) -> bool:
    stream.seek(-1, os.SEEK_END)
    return stream.read(1) == b"\n"


_UNFOLLOWED = (
    getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
)
"""Flags that refuse a link and do not wait for a pipe."""
