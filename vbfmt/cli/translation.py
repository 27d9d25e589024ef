"""Names of the library's parameters in its messages, as options of the command line.

The library writes a parameter as ```name``` or ```name=value```; a command shows ``--name value``.
"""

from __future__ import annotations

import re

_OPTIONS = {
    name: f"--{name.replace('_', '-')}"
    for name in (
        "bank",
        "banks",
        "base",
        "base_model",
        "before",
        "card",
        "check",
        "drop_extras",
        "dtype",
        "follow_links",
        "layout",
        "part",
        "rank",
        "revision",
        "targets",
        "to",
        "topk",
    )
} | {"dst": "-o", "figures": "--figure", "overwrite": "--force", "weights": "--weight"}
"""Parameter → option. What else stands between such quotes comes from a file, and stays."""

_PARAMETER = re.compile(rf"`({'|'.join(_OPTIONS)})(?:=([^`]*))?`")


def in_options(text: str) -> str:
    """The text with options in place of parameters."""
    return _PARAMETER.sub(_option, text)


def _option(found: re.Match[str]) -> str:
    name, value = found.groups()
    option = _OPTIONS[name]
    return option if value in (None, "True") else f"{option} {value}"
