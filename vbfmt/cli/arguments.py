"""Kinds of arguments that several commands take, checked before anything is done."""

from __future__ import annotations

import re

import click

LAYOUTS = ("peft", "unilora", "nlu", "algorithm1")
"""The names of `vbfmt.converters.READERS`, which is not imported to print a usage line."""


class _Path(click.Path):
    """A path, or a repository's name: anything but nothing, which would be the current folder."""

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        if not value:
            self.fail("an empty name", param, ctx)
        return value


class _Digest(click.ParamType):
    """``sha256:`` and 64 hexadecimal digits, as every command prints it."""

    name = "digest"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        if not re.fullmatch("sha256:[0-9a-f]{64}", str(value)):
            self.fail(f"{value!r} is not sha256: and 64 digits from 0 to 9 and a to f", param, ctx)
        return value


PATH = _Path()
DIGEST = _Digest()
LAYOUT = click.Choice(LAYOUTS)
