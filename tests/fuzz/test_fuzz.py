"""A short run of the fuzzer, inputs that failed before, and tests of the fuzzer itself."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.fuzz.__main__ import by_chance
from tests.fuzz.run import LARGEST, SLOWEST, Run
from tests.fuzz.targets import TARGETS, Target
from vbfmt import errors, loads
from vbfmt.errors import VbfmtWarning

CRASHERS = sorted((Path(__file__).parent / "crashers").glob("*/*"))

REACHED = {
    "packed": "accepted magic version feature length checksum header layout content",
    "peft": "accepted source content",
    "safetensors": "accepted source",
    "pickle": "accepted source",
    "base": "accepted source",
    "gguf": "accepted source",
    "unilora": "accepted source",
    "commands": "pack=0 merge=0 inspect=0 expand=0 unpack=0 plot=0 jobs=0",
}

RUNS = {"base": 150, "unilora": 250, "commands": 200, "gguf": 1000}
"""Number of inputs for slow targets."""


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_gives_only_errors_of_the_library(name, tmp_path):
    run = Run(name, TARGETS[name], tmp_path)
    by_chance(run, RUNS.get(name, 2500), random.Random(1))
    assert run.executions == RUNS.get(name, 2500)
    assert set(REACHED[name].split()) <= set(run.outcomes)


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_takes_much_memory(name):
    """Allocations are counted, so that memory that is requested but not used counts, too."""
    target, rng = TARGETS[name], random.Random(2)
    inputs = target.seeds()
    inputs += [target.damaged(rng.choice(inputs), rng) for _ in range(RUNS.get(name, 2500) // 8)]
    tracemalloc.start()
    try:
        for data in inputs:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            target.run(data)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < LARGEST
    finally:
        tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
def test_unverified_values_give_numbers_or_errors_of_the_library():
    """Without verification, the results of invalid values are returned, and NumPy may warn."""
    rng = random.Random(3)
    seeds = TARGETS["packed"].seeds()
    composed = 0
    for _ in range(2000):
        data = TARGETS["packed"].damaged(rng.choice(seeds), rng)
        try:
            adapter = loads(data, verify=False)
            if adapter.N * adapter.b <= 1 << 18:
                composed += len(list(adapter.iter_factors()))
        except errors.VbfmtError:
            pass
    assert composed > 100


@pytest.fixture
def kept(tmp_path):
    """Return a folder with one input of each target, as a run of the fuzzer leaves it."""
    for name, target in TARGETS.items():
        folder = tmp_path / f"corpus-{name}"
        folder.mkdir()
        (folder / "seed").write_bytes(target.seeds()[0])
    return tmp_path


def reached(folder):
    command = [sys.executable, "-m", "tests.fuzz.reached", folder]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_too_little_coverage_fails(kept):
    pytest.importorskip("coverage")
    done = reached(kept)
    assert done.returncode == 1, done.stderr
    assert "at least 80 % wanted" in done.stdout


def test_a_target_without_inputs_fails(kept):
    pytest.importorskip("coverage")
    (kept / "corpus-peft" / "seed").unlink()
    done = reached(kept)
    assert done.returncode == 1
    assert "targets without inputs" in done.stdout


def test_crashers_are_found():
    assert len(CRASHERS) >= 6


@pytest.mark.parametrize("path", CRASHERS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_inputs_that_failed_before_are_refused(path):
    if path.parent.name == "pickle":
        pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", VbfmtWarning)
        outcome = TARGETS[path.parent.name].run(path.read_bytes())
    assert outcome in ("source", "content", "storage")


def raises(data):
    raise KeyError(data)


def warns(data):
    return str(np.array([3e38], "f4") * np.float32(10))


def takes_memory(data):
    return str(np.empty(LARGEST + (1 << 30), np.uint8).size)  # more than any freed memory


def takes_time(data):
    begin = time.thread_time()
    while time.thread_time() < begin + 1.1 * SLOWEST:
        pass
    return ""


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (raises, KeyError),
        (warns, RuntimeWarning),
        pytest.param(
            takes_memory,
            MemoryError,
            marks=pytest.mark.skipif(sys.platform != "linux", reason="no limit elsewhere"),
        ),
        (takes_time, AssertionError),
    ],
)
def test_the_fuzzer_detects_a_bug_and_keeps_the_input(fault, error, tmp_path):
    run = Run("x", Target(fault, lambda data, rng: b"guilty", list), tmp_path)
    with pytest.raises(error):
        run(b"guilty")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"guilty"]


def test_guided_by_coverage(tmp_path):
    pytest.importorskip("atheris", reason="no wheel for this Python")
    command = [sys.executable, "-m", "tests.fuzz", "packed", "1500", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "packed: 1500 executions" in done.stdout
    seeds = len(TARGETS["packed"].seeds())
    assert len(list((tmp_path / "corpus-packed").iterdir())) > seeds
