"""Download files of a repository into huggingface_hub's cache. Every failure is a SourceError."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from vbfmt.converters.hub.repository import Repo, is_id, is_safe
from vbfmt.errors import MissingExtraError, MissingSourceError, SourceError, VbfmtError, warn

Names = Collection[str]
Choice = Callable[[Names], Collection[str]]
"""A function that gets the names of a repository's files and returns those to download, or none if
the repository lacks what is needed."""

_TIMEOUT = 10.0  # seconds
_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetched(repo: Repo, source: str, choice: Choice, what: str) -> tuple[str, list[str]]:
    """Download files of a repository.

    If the Hub cannot be reached, files that were downloaded before are used.

    Args:
        repo: the repository.
        source: the repository as the user wrote it, for messages.
        choice: chooses the files to download.
        what: a description of the wanted files, for messages.

    Returns:
        The snapshot's folder in the cache, and the names of the files.

    Raises:
        SourceError: the repository does not have the files, or cannot be downloaded.
        MissingSourceError: there is no such repository, or the Hub does not answer and the cache
            lacks the files.
        MissingExtraError: huggingface_hub is not installed.

    Warns:
        VbfmtWarning: the cached copy is used because the Hub cannot be reached.
    """
    import logging

    hub = _package(source)
    with _in_one_line(repo, source):
        names = _listed(hub, repo)
        if isinstance(names, Exception):
            return _from_cache(hub, repo, choice, names)
        chosen = sorted(choice(names))
        if not chosen:
            raise SourceError(
                f"no {what} in the repository",
                part=source,
                found=", ".join(names[:5]) or "nothing",
            )
        logging.getLogger(__name__).info("fetching %d files of %s", len(chosen), repo)
        folder = hub.snapshot_download(
            repo.id,
            revision=repo.revision,
            allow_patterns=[glob.escape(name) for name in chosen],
            tqdm_class=_bar(hub),
        )
        _require_commit(os.path.basename(folder), repo)
    return str(folder), chosen


def _listed(hub: Any, repo: Repo) -> list[str] | Exception:
    """Return the names of the repository's files, or the error if they cannot be listed.

    Raises:
        huggingface_hub.errors.RevisionNotFoundError: there is no such revision. It is raised,
            because a cached copy must not be used instead.
        SourceError: the server's answer has no commit.
    """
    try:
        found = hub.HfApi().model_info(repo.id, revision=repo.revision, timeout=_TIMEOUT)
    except hub.errors.RevisionNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001 - the errors depend on huggingface_hub's version
        return error
    _require_commit(found.sha or "", repo)
    return sorted(file.rfilename for file in found.siblings or [] if is_safe(file.rfilename))


def _require_commit(name: str, repo: Repo) -> None:
    """Check that a commit from the server is a hash. huggingface_hub uses it as a folder's name."""
    if not _COMMIT.fullmatch(name):
        raise SourceError(
            "the server's answer has no valid commit",
            part=str(repo),
            found=repr(name[:100]),
            expected="40 hexadecimal digits",
        )


def _from_cache(hub: Any, repo: Repo, choice: Choice, error: Exception) -> tuple[str, list[str]]:
    """Choose among the files that were downloaded earlier. Raise `error` if no file is chosen."""
    try:
        folder = hub.snapshot_download(repo.id, revision=repo.revision, local_files_only=True)
    except hub.errors.LocalEntryNotFoundError as missing:
        # The snapshot is incomplete, but may have all files that are needed now.
        folder = getattr(missing, "snapshot_path", None)
    chosen = sorted(choice(_names_in(folder))) if folder else []
    if not chosen:
        raise error
    if not isinstance(error, hub.errors.OfflineModeIsEnabled):
        warn(f"cannot reach {repo} on the Hub; using the cached copy ({folder})")
    return str(folder), chosen


def _names_in(folder: str) -> list[str]:
    return sorted(
        os.path.relpath(os.path.join(where, name), folder).replace(os.sep, "/")
        for where, _, names in os.walk(folder)
        for name in names
    )


def _package(source: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        if is_id(source):  # it may be meant as a path
            raise MissingSourceError(
                "no such file or folder",
                file=source,
                advice="if it is a repository on the Hub: pip install 'vbfmt[hub]'",
            ) from None
        error = MissingExtraError.of("repositories on the Hub need huggingface_hub", "hub")
        error.part = source
        raise error from None
    return huggingface_hub


@contextmanager
def _in_one_line(repo: Repo, source: str) -> Iterator[None]:
    """Convert any error of huggingface_hub to a SourceError of one line."""
    try:
        yield
    except VbfmtError:
        raise
    except Exception as error:  # noqa: BLE001 - the errors depend on huggingface_hub's version
        raise _explained(error, repo, source) from None


def _explained(error: Exception, repo: Repo, source: str) -> SourceError:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):  # a kind of RepositoryNotFoundError
        return SourceError(
            "the repository on the Hub is gated",
            part=source,
            advice=f"ask for access at {constants.ENDPOINT}/{repo.id}, then log in: hf auth login",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return MissingSourceError(
            f"no such {'file, folder or ' if is_id(source) else ''}repository on the Hub",
            part=source,
            advice="if the repository is private, log in: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return SourceError("no such revision on the Hub", part=str(repo))
    if isinstance(error, errors.OfflineModeIsEnabled):
        return MissingSourceError(
            f"{_no_path(source)}not in the Hub's cache",
            part=source,
            found="offline mode (HF_HUB_OFFLINE)",
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return SourceError(
            "the Hub refused", part=source, found=f"status {status} from {constants.ENDPOINT}"
        )
    return MissingSourceError(
        f"{_no_path(source)}no answer from the Hub",
        part=source,
        found=f"{type(error).__name__} from {constants.ENDPOINT}",
    )


def _no_path(source: str) -> str:
    """Return the first words of a message about a `source` that may be meant as a path, or none."""
    return "no such file or folder, and " if is_id(source) else ""


def _bar(hub: Any) -> type:
    """Return huggingface_hub's class of progress bars, disabled unless stderr is a terminal."""
    known: Any = hub.utils.tqdm

    class Bar(known):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            quiet = options.pop("disable", None) or not sys.stderr.isatty()
            super().__init__(*arguments, **options, disable=quiet)

    return Bar
