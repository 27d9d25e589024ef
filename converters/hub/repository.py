"""Parse names of repositories on the Hub, as users write them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from urllib.parse import unquote

from vbfmt.errors import SourceError

_SCHEME = "hf://"
_WEB = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<rest>[^?#]*)(?:[?#].*)?", re.ASCII
)
_PAGES = ("tree", "blob", "resolve", "raw", "commit")
"""Kinds of a repository's web pages whose URL contains a revision."""
_NO_OWNERS = ("datasets", "spaces", "models", "docs", "papers", "collections", "blog")
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_ID = re.compile(rf"{_PART}/{_PART}", re.ASCII)
_LONGEST_ID = 96
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(?:/[A-Za-z0-9_][A-Za-z0-9._+-]*)*", re.ASCII)
_LONGEST_REVISION = 255
_FILES = (".vblora", ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".json")
_ODD = frozenset('\\:*?"<>|')


@dataclass(frozen=True)
class Repo:
    """A repository on the Hub, or a file in it.

    Attributes:
        id: ``owner/name``.
        revision: a branch, a tag or a commit; None for the Hub's default branch.
        file: path of a file in the repository; None for the repository as a whole.
    """

    id: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{_SCHEME}{self.id}{revision}{f'/{self.file}' if self.file else ''}"


def parse(source: str, revision: str | None = None) -> Repo | None:
    """Return the repository that a user's input names, or None if the input is a local path.

    The input is a path if that path exists, unless it begins with ``hf://``. It is also a path,
    existing or not, if it is not a valid name or URL of a repository, or if it has the suffix of a
    file (``.vblora``).

    Args:
        source: a path, ``owner/name``, ``hf://owner/name[@revision][/file]``, or the URL of a page.
        revision: the revision, if the user gave it separately.

    Raises:
        SourceError: the text after ``hf://`` or in the URL is not a valid repository, the revision
            is not valid, or `revision` contradicts the revision in `source`.
    """
    page = _WEB.fullmatch(source)
    if page is not None and not os.path.lexists(source):
        repo = _of_page(source, page["rest"])
    elif source.startswith(_SCHEME):
        repo = _parsed(source)
    elif os.path.lexists(source) or not is_id(source) or source.endswith(_FILES):
        return None
    else:
        repo = Repo(source)
    if revision is not None and repo.revision not in (None, revision):
        raise SourceError(
            "two different revisions",
            file=source,
            found=f"{repo.revision} and {revision}",
            expected="one",
        )
    wanted = repo.revision if revision is None else revision
    if wanted is not None and not _is_revision(wanted):
        raise SourceError(
            "not a valid revision",
            file=source,
            found=repr(wanted),
            expected="a branch, a tag or a commit",
        )
    return replace(repo, revision=wanted)


def is_id(text: str) -> bool:
    """Return whether `text` is a valid name of a repository, ``owner/name``.

    huggingface_hub's rules apply. The repository need not exist.
    """
    plain = len(text) <= _LONGEST_ID and "--" not in text and ".." not in text
    return plain and not text.endswith(".git") and bool(_ID.fullmatch(text))


def is_model_name(text: str) -> bool:
    """Return whether `text` is a valid name of a model.

    The name may lack an owner, like those of the Hub's oldest models, such as ``gpt2``.
    """
    return is_id(text) or is_id(f"owner/{text}")


def is_safe(name: str) -> bool:
    """Return whether an untrusted file name stays within its folder on any operating system."""
    return name.isprintable() and not _ODD & set(name) and not {"", ".", ".."} & {*name.split("/")}


def _parsed(source: str) -> Repo:
    owner, _, rest = source.removeprefix(_SCHEME).partition("/")
    name, _, file = rest.partition("/")
    name, _, revision = name.partition("@")
    repo = f"{owner}/{name}"
    if not is_id(repo) or (file and not is_safe(file)):
        raise SourceError(
            "not a valid repository", file=source, expected=f"{_SCHEME}owner/name[@revision][/file]"
        )
    return Repo(repo, unquote(revision) or None, file or None)


def _of_page(source: str, rest: str) -> Repo:
    """Return the repository, revision and file in the URL of a page.

    Raises:
        SourceError: the page does not belong to a model.
    """
    parts = [unquote(part) for part in rest.strip("/").split("/")]
    repo, kind, names = "/".join(parts[:2]), parts[2:3], parts[3:]
    file = "/".join(names[1:]) if kind in (["blob"], ["resolve"], ["raw"]) else ""
    known = not kind or (kind[0] in _PAGES and (len(names) == 1 or bool(file)))
    if not known or parts[0] in _NO_OWNERS or not is_id(repo) or (file and not is_safe(file)):
        raise SourceError(
            "not a page of a model on the Hub",
            file=source,
            expected="https://huggingface.co/owner/name, or a page of its files",
        )
    return Repo(repo, names[0] if names else None, file or None)


def _is_revision(text: str) -> bool:
    plain = len(text) <= _LONGEST_REVISION and ".." not in text
    return plain and bool(_REVISION.fullmatch(text))
