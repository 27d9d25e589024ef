"""Merges that are killed at any moment or run out of space at any byte: the output is complete or
absent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.converters.merge.folders import (
    adapter_of,
    others_beside,
    save_base,
    tensor_of,
    tensors_in,
)
from tests.files.test_pages import linux_since
from vbfmt import Adapter, errors, save
from vbfmt.converters import merge

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")

SIZE = (1024, 2048)
LAYERS = 6
MERGE = """
import sys
from tests.converters.merge.test_faults import adapter
from vbfmt.converters import merge
base, out, seed = sys.argv[1:]
plan = merge.plan(adapter(int(seed)), base)
print("ready", flush=True)
merge.write(plan, out, overwrite=True)
"""


def adapter(seed: int) -> Adapter:
    return adapter_of({f"layers.{n}.q": SIZE for n in range(LAYERS)}, seed=seed, b=64)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    random = np.random.default_rng(0)
    tensors = {
        f"layers.{n}.q.weight": tensor_of(random.standard_normal(SIZE)) for n in range(LAYERS)
    }
    return save_base(tmp_path_factory.mktemp("of") / "base", tensors, shards=2)


def pickled_base(folder: Path, tensors) -> Path:
    """Return the path of a base with one pickle of weights."""
    torch = pytest.importorskip("torch")
    folder.mkdir()
    file = folder / "pytorch_model.bin"
    torch.save({n: torch.from_numpy(t.numpy().copy()) for n, t in tensors.items()}, file)
    return file


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """Return the content of the output for each of two adapters, and the time of a merge."""
    found = []
    for seed in (0, 1):
        out = tmp_path_factory.mktemp("whole") / "out"
        start = time.perf_counter()
        merge.write(merge.plan(adapter(seed), base), out)
        found.append(content(out))
    return found, time.perf_counter() - start


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def start(base, out, seed) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", MERGE, base, out, str(seed)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill_many(base, whole, out, times):
    """Kill runs that replace the output of one adapter by that of the other. Return how often each
    was found."""
    contents, duration = whole
    random = np.random.default_rng(0)
    seen = {"nothing": 0, "old": 0, "new": 0}
    before, seed = None, 0
    for _ in range(times):
        process = start(base, out, seed)
        time.sleep(random.uniform(0, 1.5 * duration))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = content(out) if out.exists() else None
        assert found in (before, contents[seed]), "a partial output"
        if found == contents[seed]:
            seen["new"] += 1
            before, seed = contents[seed], 1 - seed
        else:
            seen["nothing" if found is None else "old"] += 1
    return seen


def test_killed_at_any_moment_and_the_next_run_cleans_up(base, whole, tmp_path):
    kill_many(base, whole, tmp_path / "out", 5)
    assert start(base, tmp_path / "out", 0).wait() == 0
    assert content(tmp_path / "out") == whole[0][0]
    assert others_beside(tmp_path / "out") == []


@pytest.mark.slow
def test_killed_at_sixty_moments(base, whole, tmp_path):
    seen = kill_many(base, whole, tmp_path / "out", 60)
    assert seen["nothing"] + seen["old"] >= 5
    assert seen["new"] >= 5
    assert start(base, tmp_path / "out", 0).wait() == 0
    assert others_beside(tmp_path / "out") == []


def merged_within(limit: int, base, folder: Path, adapter: Adapter):
    """Run the command in a process that cannot write files longer than `limit` bytes."""
    script = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "import sys; from vbfmt.cli import main; main()"
    )
    packed, out = folder / "a.vblora", folder / "out"
    save(adapter, packed)
    command = [sys.executable, "-c", script, "merge", packed, "--base", base, "-o", out]
    return subprocess.run(command, capture_output=True, text=True)


def assert_nothing_left(done, folder: Path, file: str = "") -> None:
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot write {folder / 'out'}/{file}")
    assert done.stderr.count("\n") == 1
    assert "file too large" in done.stderr
    assert others_beside(folder / "out") == ["a.vblora"]
    assert not (folder / "out").exists()


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("share", [i / 11 for i in range(11)] + [0.999999])
def test_out_of_space_at_any_byte_of_the_first_shard(base, tmp_path, share):
    limit = int(share * (LAYERS // 2) * SIZE[0] * SIZE[1] * 4)
    assert_nothing_left(merged_within(limit, base, tmp_path, adapter(0)), tmp_path)


def with_the_largest(file: str, folder: Path) -> Path:
    """Return a base for which this file is the largest of the output."""
    tensors = {"a.q.weight": tensor_of(np.ones((16, 24)))}
    side_files: dict[str, bytes] = {}
    if file.startswith("model-00002"):
        tensors["a.large"] = tensor_of(np.ones(100_000))
    elif file.endswith("index.json"):  # many long names
        tensors |= {f"{'a' * 200}.{n}": tensor_of(np.ones(1)) for n in range(300)}
    elif file == "vbfmt_merge.json":
        side_files = {f"{n}{'n' * 200}.txt": b"" for n in range(300)}
    else:
        side_files = {file: bytes(200_000)}
    return save_base(folder, tensors, shards=2 if len(tensors) > 1 else 1, side_files=side_files)


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("short", [1, 5000])
@pytest.mark.parametrize(
    "file",
    [
        "model-00002-of-00002.safetensors",
        "tokenizer.json",
        "1_Pooling/model.bin",
        "model.safetensors.index.json",
        "vbfmt_merge.json",
    ],
)
def test_out_of_space_after_the_first_shard(tmp_path, file, short):
    base = with_the_largest(file, tmp_path / "of" / "base")
    one = adapter_of({"a.q": (16, 24)})
    merge.write(merge.plan(one, base), tmp_path / "of" / "whole")
    whole = {
        path.relative_to(tmp_path / "of" / "whole").as_posix(): path.stat().st_size
        for path in (tmp_path / "of" / "whole").rglob("*")
        if path.is_file()
    }
    limit = whole.pop(file) - short
    assert max(whole.values()) <= limit
    (tmp_path / "in").mkdir()
    done = merged_within(limit, base, tmp_path / "in", one)
    assert_nothing_left(done, tmp_path / "in", file)


def test_a_run_does_not_remove_the_folder_of_a_running_one(base, tmp_path):
    """Two runs write one output: the later one removes nothing of the earlier one, and both
    complete."""
    out = tmp_path / "out"
    processes = [start(base, out, seed) for seed in (0, 1, 0)]
    codes = [process.wait() for process in processes]
    assert 0 in codes
    assert len(tensors_in(out)) == LAYERS
    assert others_beside(out) == []


def test_an_error_while_writing_leaves_nothing(base, tmp_path, monkeypatch):
    from vbfmt.converters.merge import stream

    def fails(*args, **options):
        raise errors.TargetError("no", part="piece")

    monkeypatch.setattr(stream.arithmetic, "merged", fails)
    with pytest.raises(errors.TargetError):
        merge.write(merge.plan(adapter(0), base), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_an_interrupt_leaves_nothing(base, tmp_path):
    process = start(base, tmp_path / "out", 0)
    while process.poll() is None and not list(tmp_path.glob(".out.*.partial/*")):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    process.wait()
    assert process.returncode != 0 or (tmp_path / "out").exists()
    assert all(not name.endswith(".partial") for name in os.listdir(tmp_path))


@pytest.mark.skipif(not linux_since(5, 14), reason="Linux 5.14")
@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pickle"])
def test_a_shard_that_is_truncated_after_the_plan_is_one_error(tmp_path, base, pickled):
    """Earlier, SIGBUS ended the process."""
    changed = tmp_path / "base"
    if pickled:
        shard = pickled_base(changed, tensors_in(base))
    else:
        shutil.copytree(base, changed)
        shard = changed / "model-00002-of-00002.safetensors"
    plan = merge.plan(adapter(0), changed)
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(errors.StorageError, match=r"truncated while it was read.*layers\.\d\.q"):
        merge.write(plan, tmp_path / "out")
    assert os.listdir(tmp_path) == [changed.name]
