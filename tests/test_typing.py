"""The types of the installed package, as a user's type checker sees them (PEP 561)."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

SCRIPT = """
import vbfmt
from vbfmt.converters import peft
from vbfmt.store import Store

adapter = vbfmt.load("x.vblora")
reveal_type(adapter.h)
for module, a, b in adapter.iter_factors():
    reveal_type(module.name)
reveal_type(vbfmt.pack("checkpoint", "x.vblora").digest)
reveal_type(vbfmt.verify("x.vblora"))
reveal_type(peft.read("checkpoint"))
reveal_type(Store("s").names())
"""
REVEALED = ("int", "str", "str", "vbfmt.packed.Report", "vbfmt.adapter.Adapter", "dict[str, str]")
WRONG = """
vbfmt.load("x.vblora", digest=1)
vbfmt.save("adapter", "x.vblora")
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Return the Python of an environment with the wheel and the packages that are installed
    here."""
    folder = tmp_path_factory.mktemp("typed")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*pip, str(folder), str(ROOT)], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    (site,) = (folder / "env").rglob("site-packages")
    (wheel,) = folder.glob("vbfmt-*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    (site / "others.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return folder / "env" / "bin" / "python"


def checked(python, folder, text: str) -> list[str]:
    """Return what mypy prints for a script, without the last line."""
    (folder / "script.py").write_text(text, encoding="utf-8")
    command = ["-m", "mypy", "--strict", "--python-executable", str(python), "script.py"]
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
    return (done.stdout + done.stderr).splitlines()[:-1]


def test_types_are_found(python, tmp_path):
    pytest.importorskip("mypy")
    lines = checked(python, tmp_path, SCRIPT)
    assert len(lines) == len(REVEALED), lines
    for line, name in zip(lines, REVEALED, strict=True):
        assert 'note: Revealed type is "' in line
        assert line.replace("builtins.", "").endswith(f'"{name}"')


def test_wrong_types_are_found(python, tmp_path):
    pytest.importorskip("mypy")
    lines = checked(python, tmp_path, f"import vbfmt\n{WRONG}")
    assert [line.partition(": error: ")[0] for line in lines] == ["script.py:3", "script.py:4"]
    assert all("[arg-type]" in line for line in lines)
