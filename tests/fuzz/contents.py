"""Damaged folders: each file is changed according to the type that its name implies."""

from __future__ import annotations

import contextlib
import json
import random

from tests.fuzz import checkpoint, gguf, packed, pickles, trees
from tests.fuzz.content import LONGEST, Plain, scramble
from tests.fuzz.folders import LINK, joined, split

_LEADS = (b"x", b"config.json", b".", b"..", b"/dev/zero", b"/proc/self/status", b"../x", b"/etc")


def damaged(data: bytes, rng: random.Random, plain: Plain | None = None) -> bytes:
    """Return a folder with one to four files damaged, renamed, removed or added."""
    plain = plain or (lambda chunk: scramble(chunk, rng))
    files = split(data)
    if not files or rng.random() < 0.02:
        return plain(data)[:LONGEST]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        name = rng.choice(list(files)) if files else "x"
        kind = rng.random()
        if kind < 0.85 and files:
            files[name] = _content(name, files[name], rng, plain)
        elif kind < 0.9:
            files.pop(name, None)
        elif kind < 0.95:
            files[_other_name(name, rng)] = files.get(name, b"")
        else:
            files[f"{rng.choice(('x', 'd/x', name))}{LINK}"] = rng.choice(_LEADS)
    return joined(files)[:LONGEST]


def _content(name: str, content: bytes, rng: random.Random, plain: Plain) -> bytes:
    """Return the content of a file, damaged according to the structure that its name implies."""
    if name.endswith(".json"):
        return _json(content, rng, plain)
    if name.endswith(".safetensors"):
        return checkpoint.split(checkpoint.damaged(checkpoint.joined(b"", content), rng, plain))[1]
    if name.endswith(".vblora"):
        return packed.damaged(content, rng, plain)
    if name.endswith(".bin"):
        return pickles.damaged(content, rng, plain)
    if name.endswith(".gguf"):
        return gguf.damaged(content, rng, plain)
    return plain(content)


def _json(content: bytes, rng: random.Random, plain: Plain) -> bytes:
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return plain(content)
    if rng.random() < 0.1:
        return plain(content)
    trees.change(tree, rng)
    with contextlib.suppress(ValueError):
        return json.dumps(tree, default=repr).encode(errors="backslashreplace")
    return content


def _other_name(name: str, rng: random.Random) -> str:
    stem, dot, ending = name.rpartition(".")
    return rng.choice(
        (f"{stem}x{dot}{ending}", f"d/{name}", name.upper(), f"{name}.x", f"{stem}\n{dot}{ending}")
    )
