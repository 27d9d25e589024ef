"""The same adapter gives the same bytes in every process environment.

Other versions of Python, numpy and msgpack: ``make determinism``.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest

from tests import determinism
from tests.conftest import ROOT

AROUND = {
    "hash seed 0": ({"PYTHONHASHSEED": "0"}, 0o022),
    "hash seed random, umask 077": ({"PYTHONHASHSEED": "random"}, 0o077),
    "ASCII locale, umask 000": (
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LANG": "C"},
        0o000,
    ),
    "another time zone, optimized": ({"TZ": "Asia/Kathmandu", "PYTHONOPTIMIZE": "2"}, 0o022),
}


@pytest.fixture(scope="module")
def digests():
    """Return what tests/digests.py prints in each environment."""
    found = {}
    for name, (environment, umask) in AROUND.items():
        done = subprocess.run(
            [sys.executable, ROOT / "tests" / "digests.py"],
            env={**os.environ, **environment},
            umask=umask,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)["digests"]
    return found


@pytest.mark.parametrize("around", AROUND)
def test_the_golden_files_are_reproduced(digests, around, golden_folder):
    for file in golden_folder.glob("*.vblora"):
        assert digests[around][file.stem] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_all_files_and_all_factors_are_the_same(digests):
    first, *others = digests.values()
    assert len(first) >= 10
    assert all(other == first for other in others)


def test_the_matrix_contains_the_running_python():
    assert determinism.interpreter(determinism.OWN) == sys.executable


def test_rows_that_were_not_run_are_reported():
    pythons = {version for version, *_ in determinism.MATRIX}
    assert summary_of("3.11") == sorted(pythons - {"3.11"})
    assert summary_of(*pythons) == ["none"]


def summary_of(*ran):
    return determinism.summary(list(ran)).rpartition("not installed: ")[2].split(", ")


def test_running_no_row_is_a_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(determinism, "FOLDER", tmp_path)
    monkeypatch.setattr(determinism, "run", lambda *command: (tmp_path / "vbfmt-1.whl").touch())
    monkeypatch.setattr(determinism, "interpreter", lambda version: None)
    monkeypatch.setattr(determinism.shutil, "rmtree", lambda *args, **kwargs: None)
    assert determinism.main() == 1
