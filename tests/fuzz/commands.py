"""Command lines on damaged folders, each run in this process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz import bases, checkpoint, contents, folders, packed, unilora
from tests.fuzz.content import Plain
from vbfmt import cli

WORDS = "words.json"
"""Name of the file in an input that holds the command line."""

_LINES = (
    "pack src -o out.vblora",
    "pack src -o out.vblora --json --topk 2",
    "pack src/adapter_model.safetensors -o out.vblora",
    "pack src -o out.vblora --base base --bank external",
    "unpack a.vblora -o out",
    "unpack a.vblora -o out --json",
    "expand a.vblora -o out --dtype float16",
    "expand a.vblora a.vblora -o out --rank 1",
    "expand src -o out --to mlx",
    "merge a.vblora --base base -o out",
    "merge src --base base -o out --follow-links",
    "merge a.vblora --base base -o out --dry-run --json",
    "verify a.vblora",
    "verify a.vblora --against src --json",
    "inspect a.vblora --modules",
    "inspect a.vblora --json",
    "diff a.vblora src",
    "diff a.vblora a.vblora --json",
    "estimate --base base",
    "bank split a.vblora -o out.vblora",
    "bank list .",
    "store add out a.vblora",
    "plot a.vblora -o out.html --figure usage",
    "plot a.vblora -o out.svg --figure depth --force",
    "jobs pack src src/adapter_model.safetensors -o out --json",
    "jobs pack src --store out --base-model x",
    "jobs verify a.vblora * --json",
    "jobs expand a.vblora src -o out --dtype bfloat16",
    "jobs merge a.vblora --base base -o out",
    "jobs diff a.vblora --with src",
)
_OPTIONS = (
    "--figure",
    "kinds",
    "--base",
    "--base-is",
    "--json",
    "-q",
    "-v",
    "--force",
    "--strict",
    "--topk",
    "1",
    "--rank",
    "--dtype",
    "nan",
)


def seeds() -> list[bytes]:
    """Return every line of `_LINES` with a folder that has an adapter in each form and a base."""
    weights = {}
    for number, data in enumerate(checkpoint.seeds()[:6]):
        config, tensors = checkpoint.split(data)
        weights[number] = {
            "src/adapter_config.json": config,
            "src/adapter_model.safetensors": tensors,
        }
    uni = folders.split(unilora.seeds()[0])
    weights[len(weights)] = {f"src/{name}": content for name, content in uni.items()}
    base = {f"base/{name}": c for name, c in folders.split(bases.seeds()[1]).items()}
    adapters = [packed.CORPUS / "valid" / f"{n}.vblora" for n in ("k-2", "tensor-names", "config")]
    made = []
    for number, line in enumerate(_LINES):
        fits = line.startswith("merge")
        adapter = bases.ADAPTER if fits else adapters[number % len(adapters)].read_bytes()
        files = {"a.vblora": adapter, **base}
        files |= weights[number % len(weights)]
        files[WORDS] = json.dumps(line.split()).encode()
        made.append(folders.joined(files))
    return made


def damaged(data: bytes, rng: random.Random, plain: Plain | None = None) -> bytes:
    """Damage the files, and in one of four inputs also the command line."""
    files = folders.split(data)
    words = files.pop(WORDS, b"[]")
    if rng.random() < 0.8:
        files = folders.split(contents.damaged(folders.joined(files), rng, plain))
    if rng.random() < 0.25:
        words = _other_words(words, list(files), rng)
    files.pop(WORDS, None)
    return folders.joined({WORDS: words, **files})


def run(data: bytes) -> str:
    """Run a command. It must exit with 0, 1 or 2, print complete printable lines, and change only
    its output, which must be complete or absent."""
    files = folders.split(data)
    words = _words(files.pop(WORDS, b"[]"))
    with folders.written(files) as folder, _within(folder):
        before = _content(folder)
        code, out, err = _called(words)
        after = _content(folder)
        assert code in (0, 1, 2), code
        for text in (out, err):
            assert all(line.isprintable() for line in text.split("\n")), text
        assert "Traceback" not in err
        made = {name for name in after if name not in before}
        assert {n: c for n, c in after.items() if n in before} == before or "--force" in words
        assert all(_is_asked_for(name, words) for name in made), made
        if code and words and words[0] not in ("diff", "store", "jobs"):
            assert not made, made
        return f"{''.join(words[:1])}={code}"


def _is_asked_for(name: str, words: list[str]) -> bool:
    """Return whether a new file is an output, in an output folder, or a bank next to an output."""
    top = name.split("/")[0]
    return top.startswith("out") or top in words or top.endswith(".bank")


def _words(content: bytes) -> list[str]:
    """Return the command line without arguments that leave the folder, use a server or start
    processes."""
    try:
        words = json.loads(content)
    except (ValueError, RecursionError):
        return []
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return []
    words = [word for word in words if _is_harmless(word)]
    if words[:1] == ["jobs"]:
        return words + ["-j", "1"] * (len(words) > 1)  # in this process
    # All figures take a second.
    return [] if words[:1] == ["plot"] and "--figure" not in words else words


def _is_harmless(word: str) -> bool:
    if word in ("--", "ray"):
        return False
    if "/" in word:
        return word == "src/adapter_model.safetensors"
    return ".." not in word and ":" not in word and "\0" not in word and len(word) < 100


def _other_words(content: bytes, names: list[str], rng: random.Random) -> bytes:
    words = _words(content) or ["verify"]
    tops = [name.split("/")[0] for name in names] or ["x"]
    at = rng.randrange(len(words))
    match rng.randrange(5):
        case 0:
            del words[at]
        case 1:
            words.insert(rng.randrange(1, len(words) + 1), rng.choice(_OPTIONS))
        case 2:
            words[at] = rng.choice(tops)
        case 3:
            words = rng.choice(_LINES).split()
        case _:
            words.insert(at, words[at])
    return json.dumps(words).encode()


@contextlib.contextmanager
def _within(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _called(words: list[str]) -> tuple[object, str, str]:
    """Run a command line, and return its exit status, standard output and standard error."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
    argv, stdin = sys.argv, sys.stdin
    sys.argv = ["vbfmt", *words]
    sys.stdin = io.TextIOWrapper(io.BytesIO())
    os.environ["HF_HUB_OFFLINE"] = "1"
    code: object = 0
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv, sys.stdin = argv, stdin
    out, err = (stream.buffer.getvalue() for stream in streams)  # type: ignore[attr-defined]
    binary = "-" in words
    return code, "" if binary else out.decode(), err.decode()


def _content(folder: Path) -> dict[str, bytes | str]:
    """Return the content of every file and the target of every link, by name."""
    found: dict[str, bytes | str] = {}
    for where, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(where, name)
            key = os.path.relpath(path, folder)
            if os.path.islink(path):
                found[key] = os.readlink(path)
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    found[key] = file.read()
    return found
