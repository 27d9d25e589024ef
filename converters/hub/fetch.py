"""Files of a repository, by huggingface_hub: in its cache, or one error."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from vbfmt.converters.hub.repository import Repo, is_safe
from vbfmt.errors import MissingSourceError, SourceError, VbfmtError, warn

Names = Collection[str]
Choice = Callable[[Names], Collection[str]]
"""Names of files in a repository → those that are needed, none if it is not what was meant."""

_PATIENCE = 10.0  # seconds


def fetched(repo: Repo, source: str, choice: Choice, what: str) -> tuple[str, list[str]]:
    """The snapshot's folder in the cache, and those of its files that were chosen.

    Args:
        source: the repository as the user wrote it, for messages.
        choice: of the files; those alone are fetched.
        what: is looked for, for messages.

    Raises:
        SourceError
    """
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
        folder = hub.snapshot_download(
            repo.id,
            revision=repo.revision,
            allow_patterns=[glob.escape(name) for name in chosen],
            tqdm_class=_bar(hub),
        )
    return str(folder), chosen


def _listed(hub: Any, repo: Repo) -> list[str] | Exception:
    """The names of the repository's files, or why they are not to be had.

    Raises:
        huggingface_hub.errors.RevisionNotFoundError: then the cache would only hide it.
    """
    try:
        found = hub.HfApi().model_info(repo.id, revision=repo.revision, timeout=_PATIENCE)
    except hub.errors.RevisionNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001 - each version of it has another HTTP library
        return error
    return sorted(file.rfilename for file in found.siblings or [] if is_safe(file.rfilename))


def _from_cache(hub: Any, repo: Repo, choice: Choice, error: Exception) -> tuple[str, list[str]]:
    """The same without the Hub, as far as an earlier download goes; else the error."""
    try:
        folder = hub.snapshot_download(repo.id, revision=repo.revision, local_files_only=True)
    except hub.errors.LocalEntryNotFoundError as missing:
        # Known to be incomplete: what was not needed then may not be needed now.
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
        raise MissingSourceError(
            "no such file or folder",
            file=source,
            advice="if it is a repository on the Hub: pip install 'vbfmt[hub]'",
        ) from None
    return huggingface_hub


@contextmanager
def _in_one_line(repo: Repo, source: str) -> Iterator[None]:
    """Whatever huggingface_hub raises, as one of our errors."""
    try:
        yield
    except VbfmtError:
        raise
    except Exception as error:  # noqa: BLE001 - each version of it has another HTTP library
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
            "no such file, folder or repository on the Hub",
            part=source,
            advice="if the repository is private, log in: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return SourceError("no such revision on the Hub", part=str(repo))
    if isinstance(error, errors.OfflineModeIsEnabled):
        return MissingSourceError(
            "no such file or folder, and not in the Hub's cache",
            part=source,
            found="offline mode (HF_HUB_OFFLINE)",
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return SourceError(
            "the Hub refused", part=source, found=f"status {status} from {constants.ENDPOINT}"
        )
    return MissingSourceError(
        "no such file or folder, and no answer from the Hub",
        part=source,
        found=f"{type(error).__name__} from {constants.ENDPOINT}",
    )


def _bar(hub: Any) -> type:
    """huggingface_hub's progress bar on a terminal, nothing in a pipe."""
    known: Any = hub.utils.tqdm

    class Bar(known):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            quiet = options.pop("disable", None) or not sys.stderr.isatty()
            super().__init__(*arguments, **options, disable=quiet)

    return Bar
