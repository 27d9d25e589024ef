"""Names of the library's parameters in its messages, as options of the command line.

The library writes a parameter as ```name``` or ```name=value```; a command shows ``--name value``.
"""

from __future__ import annotations

import re

_PARAMETER = re.compile(r"`([a-z][a-z_]*)(?:=([^`]*))?`")
_OTHER_NAMES = {
    "overwrite": "--force",
    "weights": "--weight",
    "figures": "--figure",
    "dst": "-o",
    "b": "--vector-length",
}


def in_options(text: str) -> str:
    """The text with options in place of parameters."""
    return _PARAMETER.sub(_option, text)


def _option(found: re.Match[str]) -> str:
    name, value = found.groups()
    option = _OTHER_NAMES.get(name, f"--{name.replace('_', '-')}")
    return option if value in (None, "True") else f"{option} {value.strip(chr(34))}"
