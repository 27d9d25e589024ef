"""Every Python block and every console session in the README and the docs runs as written.

Blocks without a language are not run; they need a model or a network. A comment
``<!-- not run: reason -->`` before a block says why it is not run.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
_BLOCK = re.compile(r"^(<!-- not run: .*? -->\n\n?)?```(\w*)\n(.*?)^```$", re.M | re.S)
_FAILS = ("error: ", "FAILED", "Error: ")


def blocks(page: Path, language: str) -> list[str]:
    found = _BLOCK.findall(page.read_text("utf-8"))
    return [code for left_out, kind, code in found if kind == language and not left_out]


def sessions(page: Path) -> list[tuple[str, list[str]]]:
    """Return (command, printed lines) for each line that begins with ``$``."""
    found: list[tuple[str, list[str]]] = []
    for block in blocks(page, "console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:].partition("  #")[0], []))
            elif line.strip():
                found[-1][1].append(line)
    return found


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
WITH_SESSIONS = [page for page in PAGES if sessions(page)]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def folder(tmp_path, data_folder):
    """Return a folder with the demo's checkpoint, its packed file, and a damaged copy of this
    file."""
    shutil.copytree(data_folder / "minilm-vblora", tmp_path / "minilm-vblora")
    shutil.copytree(data_folder, tmp_path / "tests" / "data")
    run("vbfmt pack minilm-vblora -o minilm.vblora", tmp_path)
    data = bytearray((tmp_path / "minilm.vblora").read_bytes())
    data[5000] ^= 1
    (tmp_path / "damaged.vblora").write_bytes(data)
    return tmp_path


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    if words[0] == "vbfmt":
        words = [sys.executable, "-m", "vbfmt", *words[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


def test_code_blocks_are_found():
    assert len(WITH_PYTHON) >= 3
    assert sum(len(sessions(page)) for page in WITH_SESSIONS) >= 5


@pytest.mark.timeout(1800)  # on a busy machine, imports take minutes
@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_python_blocks_run(page, folder):
    if any("torch" in code for code in blocks(page, "python")):
        pytest.importorskip("torch")
    script = "\n".join(blocks(page, "python"))
    (folder / "script.py").write_text(script, encoding="utf-8")
    done = run(f"{shlex.quote(sys.executable)} script.py", folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", WITH_SESSIONS, ids=name)
def test_console_sessions_print_what_they_show(page, folder):
    for command, lines in sessions(page):
        output = next(
            (
                shlex.split(command)[i + 1]
                for i, word in enumerate(shlex.split(command))
                if word == "-o"
            ),
            None,
        )
        if output and (folder / output).exists():
            command += " --force"
        done = run(command, folder)
        fails = any(sign in line for line in lines for sign in _FAILS)
        assert (done.returncode != 0) == fails, f"{command}\n{done.stdout}{done.stderr}"
        printed = [line.rstrip() for line in (done.stdout + done.stderr).splitlines()]
        assert [line for line in lines if line.rstrip() not in printed] == [], printed
