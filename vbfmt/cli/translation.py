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
        "replaces",
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

_VALUES = {("replaces", "ANY"): "--force"}
"""Parameter and value → option, for pairs that have an option of their own."""

_PARAMETER = re.compile(rf"`({'|'.join(_OPTIONS)})(?:=([^`]*))?`")


def in_options(text: str) -> str:
    """Return the text with options instead of parameters."""
    return _PARAMETER.sub(_option, text)


def _option(found: re.Match[str]) -> str:
    name, value = found.groups()
    option = _VALUES.get((name, value), _OPTIONS[name])
    whole = value in (None, "True") or (name, value) in _VALUES
    return option if whole else f"{option} {value}"
