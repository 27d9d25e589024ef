"""Write JSON like ``json.dumps(value, indent=2)``, in pieces and faster.

With an indent, the standard library uses its encoder in Python, which takes a second for 20,000
modules. Here, the encoder in C writes every dict and list that does not contain another one, and
most do not.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any


def pieces(value: object, *, ensure_ascii: bool, indent: str = "\n") -> Iterator[str]:
    """Yield the text of a value in pieces. An iterator is written as a list.

    Args:
        indent: the line feed and spaces before each line of the value.
    """
    inner = f"{indent}  "
    if isinstance(value, (dict, list, tuple)) and not any(map(_is_nested, _values(value))):
        text = _encoder(inner, ensure_ascii).encode(value)
        yield f"{text[0]}{inner}{text[1:-1]}{indent}{text[-1]}" if value else text
    elif isinstance(value, dict):
        yield from _enclosed("{}", _entries(value, inner, ensure_ascii), indent, inner)
    elif isinstance(value, (list, tuple, Iterator)):
        items = (pieces(item, ensure_ascii=ensure_ascii, indent=inner) for item in value)
        yield from _enclosed("[]", items, indent, inner)
    else:
        yield json.dumps(value, ensure_ascii=ensure_ascii)


def _enclosed(
    brackets: str, items: Iterator[Iterator[str]], indent: str, inner: str
) -> Iterator[str]:
    first = True
    for item in items:
        yield f"{brackets[0]}{inner}" if first else f",{inner}"
        yield from item
        first = False
    yield brackets if first else f"{indent}{brackets[1]}"


def _entries(value: dict[str, Any], indent: str, ensure_ascii: bool) -> Iterator[Iterator[str]]:
    for key, item in value.items():
        yield _entry(key, pieces(item, ensure_ascii=ensure_ascii, indent=indent), ensure_ascii)


def _entry(key: str, item: Iterator[str], ensure_ascii: bool) -> Iterator[str]:
    yield f"{json.dumps(key, ensure_ascii=ensure_ascii)}: "
    yield from item


def _is_nested(value: object) -> bool:
    return isinstance(value, (dict, list, tuple, Iterator))


def _values(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value


@functools.lru_cache
def _encoder(indent: str, ensure_ascii: bool) -> json.JSONEncoder:
    return json.JSONEncoder(ensure_ascii=ensure_ascii, separators=(f",{indent}", ": "))
