"""Match regular expressions from untrusted configs in limited time.

Python's ``re`` can take years for a pattern of a few characters.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

from vbfmt.errors import ConfigError

Match: TypeAlias = Any
"""A match object like that of Python's ``re``."""

LONGEST_PATTERN = 10_000
"""Largest length of a pattern, in characters."""

TIME = 0.1
"""Limit of CPU time for one name, in seconds. A usual pattern takes a thousandth of it."""

TIME_OF_ALL = 1.0
"""Limit of CPU time for all slow names together, in seconds. A file may have thousands of names."""

_SLOW = 0.001


@lru_cache(maxsize=64)
def matcher(pattern: str) -> Callable[[str], Match | None]:
    """Return a function that matches a full name against a pattern.

    The function raises a ConfigError if a name takes longer than `TIME`, or all names together take
    longer than `TIME_OF_ALL`.

    Raises:
        ConfigError: `pattern` is not a regular expression or is too long, or the regex package is
            not installed.
    """
    try:
        import regex
    except ImportError:
        raise ConfigError(
            "a regular expression needs the regex package",
            found=pattern[:80],
            advice="pip install 'vbfmt[torch]', or name the modules in a list",
        ) from None
    if len(pattern) > LONGEST_PATTERN:
        raise ConfigError(
            "a regular expression that is too long",
            found=f"{len(pattern)} characters",
            expected=f"at most {LONGEST_PATTERN}",
        )
    try:
        compiled = regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError, MemoryError, ValueError) as error:
        raise ConfigError(
            "not a regular expression", found=pattern, expected=f"one that compiles ({error})"
        ) from None

    left = TIME_OF_ALL

    def match(name: str) -> Match | None:
        nonlocal left
        begin = time.thread_time()
        try:
            if left <= 0:
                raise TimeoutError
            found: Match | None = compiled.fullmatch(name, timeout=TIME)
        except TimeoutError:
            raise ConfigError(
                "a regular expression that takes too long",
                found=pattern,
                expected=f"{TIME} s at most for {name[:80]!r}, {TIME_OF_ALL} s for all names",
                advice="name the modules in a list",
            ) from None
        taken = time.thread_time() - begin
        left -= taken if taken > _SLOW else 0.0
        return found

    return match
