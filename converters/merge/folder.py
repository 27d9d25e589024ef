"""Write a merged model: stream it into a temporary folder, and then move that to its path."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator

from vbfmt._files import PathLike, folders, parents, storage
from vbfmt._format.container import Bytes
from vbfmt.converters.merge import paths, refusals
from vbfmt.converters.merge.plan import Plan
from vbfmt.converters.merge.stream import file_blocks, workers

_logger = logging.getLogger(__name__)


def write(
    plan: Plan,
    path: PathLike,
    *,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the merged model that a plan describes.

    The folder is written completely and flushed to the disk, or not at all. Only a few blocks are
    in memory at a time, whatever the size of the model.

    Args:
        plan: the plan of the merge.
        path: the folder to write. It must not be inside the base. Missing parent folders are
            created.
        overwrite: replace the output of an earlier merge, in one step. A folder that is not the
            output of a merge, or to which other files have been added, is refused.
        progress: called after each write with the number of written bytes. Their sum is
            `plan.size`.

    Raises:
        OutputExistsError: `path` exists, and `overwrite` is not set.
        TargetError: `path` is refused, or a value is too large for the dtype.
        StorageError: the operating system reported an error, or the disk has not enough space.
    """
    require_output(plan, path, overwrite=overwrite)
    report = progress or (lambda count: None)
    with (
        parents.created(path),
        folders.new(path, overwrite=overwrite, whole=True) as folder,
        workers() as pool,
    ):
        inner = _folders(plan.copies)
        for name in sorted(inner):
            os.mkdir(os.path.join(folder, name))
        for file in plan.files:
            stream = _counted(file_blocks(file, plan.factors, pool), report)
            _write_file(folder, file.name, stream, past_cache=True)
        for name in plan.copies:
            source = os.path.join(plan.base.path, name)
            _write_file(folder, name, _counted(paths.content(source, plan.base.home), report))
            _keep_executable(source, os.path.join(folder, name))
        for name, text in plan.texts.items():
            _write_file(folder, name, _counted([text], report))
        for name in inner:
            storage.sync_folder(os.path.join(folder, name))
        plan.base.require_unchanged()
        # Another process may have created the output in the meantime.
        refusals.require_output(os.fspath(path), plan.base.path, overwrite=overwrite)


def require_output(plan: Plan, path: PathLike, *, overwrite: bool) -> None:
    """Check that a plan's output can be written to `path`, as far as this is known beforehand.

    Raises:
        OutputExistsError, TargetError, StorageError: as `write`.
    """
    refusals.require_output(os.fspath(path), plan.base.path, overwrite=overwrite)
    refusals.require_space(os.fspath(path), plan.size)


def _keep_executable(source: str, copy: str) -> None:
    """If `source` is executable, make `copy` executable for everyone who may read it."""
    if os.stat(source).st_mode & stat.S_IXUSR:
        mode = stat.S_IMODE(os.stat(copy).st_mode)
        os.chmod(copy, mode | (mode & 0o444) >> 2)


def _counted(contents: Iterable[Bytes], report: Callable[[int], None]) -> Iterator[Bytes]:
    for content in contents:
        yield content
        report(len(content))


def _folders(names: Iterable[str]) -> set[str]:
    """Return the folders of these files within the output, including all parent folders."""
    found: set[str] = set()
    for name in names:
        inner = os.path.dirname(name)
        while inner and inner not in found:
            found.add(inner)
            inner = os.path.dirname(inner)
    return found


def _write_file(
    folder: str, name: str, contents: Iterable[Bytes], *, past_cache: bool = False
) -> None:
    _logger.info("writing %s", name)
    storage.write_in_new_folder(os.path.join(folder, name), contents, past_cache=past_cache)
