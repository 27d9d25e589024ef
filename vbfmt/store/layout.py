"""The keys of objects, names and leases in a store, the same in a folder and on S3.

====================================  =============================================================
``store.json``                        the layout's version
``adapters/ab/<64 hex>.vblora``       an adapter without its bank, by its digest
``banks/ab/<64 hex>.bank``            a vector bank, by its SHA-256
``names/ab/<name>``                   JSON: a name as it was given, and the digest it points to
``leases/<id>``                       JSON: digests in use, and until when
``unreferenced/<key of an object>``   JSON: time since which nothing needs the object
====================================  =============================================================

``ab`` stands for the first two hexadecimal digits of the object's hash, or of the SHA-256 of a
name's file name. A name's file name is the name in lower case, with ``%`` instead of ``/``. So
names that differ only in case have the same file on all file systems.
"""

from __future__ import annotations

import hashlib
import re
import sys

from vbfmt.errors import StoreError

VERSION = 1
ROOT = "store.json"
ADAPTERS, BANKS, NAMES, LEASES, UNREFERENCED = (
    "adapters",
    "banks",
    "names",
    "leases",
    "unreferenced",
)
PREFIXES = (ADAPTERS, BANKS, NAMES, LEASES, UNREFERENCED)
SHARDS = [f"{number:02x}" for number in range(256)]

LONGEST_NAME = 180

_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?|.*\.", re.IGNORECASE)
"""File names that Windows reserves for devices, and names that end with a dot, which Windows
drops."""

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]*(/[A-Za-z0-9_][A-Za-z0-9._@+-]*)*")


def is_digest(text: str) -> bool:
    """Return whether `text` is ``sha256:`` and 64 lower-case hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def is_like_digest(text: str) -> bool:
    """Return whether `text` is meant as a digest, valid or not. No name contains a colon."""
    return text.startswith("sha256:")


def require_sha256(text: str) -> None:
    """Check that `text` has the form of a bank's SHA-256.

    Raises:
        StoreError: `text` is not 64 lower-case hexadecimal digits.
    """
    if not is_digest(f"sha256:{text}"):
        raise StoreError(
            "not the SHA-256 of a bank", found=repr(text), expected="64 hexadecimal digits"
        )


def adapter_key(digest: str) -> str:
    """Return the key of the adapter with a digest.

    Raises:
        StoreError: `digest` is not a digest.
    """
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise StoreError(
            "not a digest",
            found=repr(digest),
            expected="sha256: and 64 hexadecimal digits",
        )
    sha256 = match[1]
    return f"{ADAPTERS}/{sha256[:2]}/{sha256}.vblora"


def digest_of(key: str) -> str | None:
    """Return the digest of the adapter at `key`, or None if `key` is not an adapter's."""
    match = re.fullmatch(r"adapters/([0-9a-f]{2})/(\1[0-9a-f]{62})\.vblora", key)
    return f"sha256:{match[2]}" if match else None


def bank_key(sha256: str) -> str:
    """Return the key of the bank with a SHA-256."""
    return f"{BANKS}/{sha256[:2]}/{sha256}.bank"


def bank_of(key: str) -> str | None:
    """Return the SHA-256 of the bank at `key`, or None if `key` is not a bank's."""
    match = re.fullmatch(r"banks/([0-9a-f]{2})/(\1[0-9a-f]{62})\.bank", key)
    return match[2] if match else None


def name_key(name: str) -> str:
    """Return the key of a name.

    Raises:
        StoreError: the name is not allowed.
    """
    require_name(name)
    file = name.lower().replace("/", "%")
    return f"{NAMES}/{hashlib.sha256(file.encode()).hexdigest()[:2]}/{file}"


def require_name(name: str) -> None:
    """Check a name.

    A name has one or more parts of letters, digits and ``. _ - + @``, separated by ``/``. Each part
    begins with a letter, a digit or ``_``. So no name can refer to a file outside the store.

    Raises:
        StoreError: the name is not allowed.
    """
    if is_digest(name) or not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise StoreError(
            "invalid name for an adapter",
            found=repr(name),
            expected=f"at most {LONGEST_NAME} letters, digits and . _ - + @, in parts separated "
            "by /; each part begins with a letter, a digit or _",
        )
    if sys.platform == "win32" and _RESERVED.fullmatch(name):
        raise StoreError(
            "invalid name for an adapter",
            found=repr(name),
            expected="a name that Windows does not reserve, and no dot at the end",
        )


def unreferenced_key(key: str) -> str:
    """Return the key of the record that nothing needs the object at `key`."""
    return f"{UNREFERENCED}/{key}"
