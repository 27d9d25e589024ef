"""Translation of parameters in the library's messages into options of the command line.

The library writes a parameter as ```name``` or ```name=value```; a command prints ``--name value``.
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
} | {
    "dst": "-o",
    "figures": "--figure",
    "overwrite": "--force",
    "weights": "--weight",
    "workers": "--jobs",
}
"""Parameter → option. Other text in such quotes comes from a file and is not translated."""

_PARAMETER = re.compile(rf"`({'|'.join(_OPTIONS)})(?:=([^`]*))?`")


def in_options(text: str) -> str:
    """Return the text with options instead of parameters."""
    return _PARAMETER.sub(_option, text)


def _option(found: re.Match[str]) -> str:
    name, value = found.groups()
    option = _OPTIONS[name]
    return option if value in (None, "True") else f"{option} {value}"
