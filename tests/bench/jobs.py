"""Jobs over many adapters, with two processes compared with one, and the speed of verifying on one
core.

``python -m tests.bench jobs`` makes ``BENCH_ADAPTERS`` checkpoints (5,000) in the folder that
``BENCH_FOLDER`` names (a temporary one if not given).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
from safetensors.numpy import save_file

from tests.bench.shapes import large_adapters
from tests.bench.table import Row
from vbfmt import save
from vbfmt.converters import jobs

WORKERS = 2
ROUNDS = 3
RANK = 4
H, LENGTH, LAYERS = 64, 128, 6
SHAPES = {  # MiniLM's
    "attention.self.query": (384, 384),
    "attention.self.key": (384, 384),
    "attention.self.value": (384, 384),
    "attention.output.dense": (384, 384),
    "intermediate.dense": (384, 1536),
    "output.dense": (1536, 384),
}
LARGE = 100
CONFIG = (
    '{"peft_type": "VBLORA", "base_model_name_or_path": "base", "r": 4, "topk": 2,'
    ' "num_vectors": 64, "vector_length": 128,'
    ' "target_modules": ["query", "key", "value", "dense"],'
    ' "save_only_topk_weights": true, "task_type": "SEQ_CLS"}'
)


def rows() -> Iterator[Row]:
    """Pack and verify with one process and with two; verify large files with one."""
    home = Path(tempfile.mkdtemp(dir=os.environ.get("BENCH_FOLDER")))
    count = int(os.environ.get("BENCH_ADAPTERS", "5000"))
    try:
        _write_checkpoints(home / "checkpoints", count)
        yield _packing(home, count)
        yield from _verifying(home / "large", count)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _packing(home: Path, count: int) -> Row:
    sources = jobs.collected([f"{home}/checkpoints/*"])
    task = jobs.Task("pack")

    def pack(workers: int) -> float:
        folder = Path(tempfile.mkdtemp(dir=home))
        seconds = _run(task, jobs.items(sources, folder, task), workers)
        shutil.rmtree(folder)
        return seconds

    return _rate(f"pack {count:,} checkpoints of MiniLM's shape", _medians(pack), count)


def _verifying(folder: Path, count: int) -> Iterator[Row]:
    """Measure verifying adapters of Llama-2-7B's shape. A few files are linked under many names."""
    folder.mkdir()
    for number, adapter in enumerate(large_adapters(LARGE)):
        save(adapter, folder / f"{number}.vblora")
    for number in range(LARGE, count):
        os.link(folder / f"{number % LARGE}.vblora", folder / f"{number}.vblora")
    items = [jobs.Item(str(path)) for path in sorted(folder.iterdir())]
    seconds = _medians(lambda workers: _run(jobs.Task("verify"), items, workers))
    yield _rate(f"verify {count:,} adapters of Llama-2-7B's shape", seconds, count)
    rate = count / seconds[1]
    yield Row("the same on one core (150 a second)", f"{rate:,.0f} a second", "–", 150 / rate, 1)


def _medians(seconds: Callable[[int], float]) -> dict[int, float]:
    """Return the median time with one process and with all, measured in turn."""
    rounds = [{workers: seconds(workers) for workers in (1, WORKERS)} for _ in range(ROUNDS)]
    return {workers: median(each[workers] for each in rounds) for workers in (1, WORKERS)}


def _run(task: jobs.Task, items: list[jobs.Item], workers: int) -> float:
    start = time.perf_counter()
    outcomes = list(jobs.run(task, items, workers=workers))
    seconds = time.perf_counter() - start
    failed = [outcome for outcome in outcomes if outcome.status != "done"]
    if failed or len(outcomes) != len(items):
        raise RuntimeError(f"{len(failed)} failed: {failed[:1]}")
    return seconds


def _rate(what: str, seconds: dict[int, float], count: int) -> Row:
    one, two = (count / seconds[workers] for workers in (1, WORKERS))
    return Row(f"{what}, {WORKERS} processes (one; bound: 1.8 × its rate)",
               f"{two:,.0f} a second", f"{one:,.0f} a second", one / two, 1 / 1.8)  # fmt: skip


def _write_checkpoints(folder: Path, count: int) -> None:
    """Write checkpoints in PEFT's top-k form, each with different indices."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    bank = generator.uniform(-0.02, 0.02, (H, LENGTH)).astype("f4")
    shapes = {
        f"base_model.model.encoder.layer.{layer}.{name}.vblora_logits": shape
        for layer in range(LAYERS)
        for name, shape in SHAPES.items()
    }
    for number in range(count):
        tensors = {"base_model.vblora_vector_bank": bank}
        for name, (i, o) in shapes.items():
            for side, shape in (("A", (RANK, i // LENGTH)), ("B", (o // LENGTH, RANK))):
                first = generator.integers(0, H // 2, (*shape, 1))
                indices = np.concatenate([first, first + H // 2], axis=-1)
                tensors[f"{name}_{side}_topk_indices"] = indices
                weights = generator.uniform(0.5, 0.9, (*shape, 1)).astype("f4")
                tensors[f"{name}_{side}_topk_weights"] = weights
        one = folder / f"user-{number}"
        one.mkdir()
        save_file(tensors, one / "adapter_model.safetensors")
        (one / "adapter_config.json").write_text(CONFIG)
