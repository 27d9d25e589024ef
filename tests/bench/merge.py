"""``vbfmt merge`` compared with PEFT's merge_and_unload + save_pretrained and with a plain copy:
whole processes, in turns, on a base of TinyLlama's shape (bfloat16, 2.2 GB) and on one four times
as large. Also the reduction of a sum's rank compared with the SVD of ΔW."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from ml_dtypes import bfloat16

from tests.bench.shapes import LAYERS, LLAMA_CONFIG, TINYLLAMA, write_tinyllama_logits
from tests.bench.table import Row, best, print_table
from vbfmt import converters
from vbfmt.converters._files import safetensors
from vbfmt.converters.lowrank import reduction
from vbfmt.packed import save

_MORE_MEMORY = 16
ROUNDS = 5
MANY_LAYERS = 97
"""With this number of layers, the base is four times as large; the embeddings are the same."""

_VBFMT = os.path.join(os.path.dirname(sys.executable), "vbfmt")
_PEFT = """
import sys, torch
from transformers import AutoModelForCausalLM
from peft import PeftModel
base, adapter, output = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(output)
"""


@dataclass(frozen=True)
class Measured:
    """Seconds of a process, and its peak resident memory without mapped files, in bytes."""

    seconds: float
    peak: int


def rows() -> list[Row]:
    """Return the rows of this subject. They take a few minutes and temporarily 20 GB of disk."""
    folder = tempfile.mkdtemp(prefix="vbfmt-bench-")
    try:
        merged = _merge_rows(folder)
        return [*merged, _memory_row(folder, small=merged[-1].ratio), *_reduction_rows()]
    finally:
        shutil.rmtree(folder)


def _merge_rows(folder: str) -> list[Row]:
    base, source, packed = inputs(folder, LAYERS)
    out = os.path.join(folder, "out")
    commands = {
        "vbfmt": [_VBFMT, "merge", packed, "--base", base, "-o", out],
        "cp": ["sh", "-c", 'cp -r "$0" "$1" && sync "$1"/*', base, out],
        "peft": [sys.executable, "-c", _PEFT, base, source, out],
    }
    runs: dict[str, list[Measured]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            runs[name].append(_run(command))
            shutil.rmtree(out)
            os.sync()
    seconds = {name: statistics.median(run.seconds for run in runs[name]) for name in runs}
    peaks = {name: max(run.peak for run in runs[name]) for name in runs}
    shutil.rmtree(base)
    return [
        Row(
            f"merge into 2.2 GB, median of {ROUNDS} (PEFT: load, merge_and_unload, save)",
            f"{seconds['vbfmt']:.2f} s",
            f"{seconds['peft']:.2f} s",
            seconds["vbfmt"] / seconds["peft"],
            0.5,
        ),
        Row(
            "the same compared with cp -r and fsync",
            f"{seconds['vbfmt']:.2f} s",
            f"{seconds['cp']:.2f} s",
            seconds["vbfmt"] / seconds["cp"],
            1.15,
        ),
        Row(
            "merge: peak memory without mapped files, MB",
            f"{peaks['vbfmt'] / 1e6:.0f} MB",
            f"{peaks['peft'] / 1e6:.0f} MB",
            peaks["vbfmt"] / 1e6,
            300,
        ),
    ]


def _memory_row(folder: str, small: float) -> Row:
    """Compare the memory for a base four times as large with `small` MB, the memory for the smaller
    one."""
    folder = os.path.join(folder, "large")
    base, _, packed = inputs(folder, MANY_LAYERS)
    size = os.path.getsize(os.path.join(base, "model.safetensors"))
    run = _run([_VBFMT, "merge", packed, "--base", base, "-o", os.path.join(folder, "out")])
    large = run.peak / 1e6
    return Row(
        f"merge into {size / 1e9:.1f} GB: peak memory, MB more than into 2.2 GB",
        f"{large - small:+.0f} MB ({large:.0f} MB, {run.seconds:.1f} s)",
        "–",
        large - small,
        _MORE_MEMORY,
    )


def _reduction_rows() -> list[Row]:
    """Reduce a sum of two adapters of rank 4 on one 2048 × 5632 weight (rank 8) to rank 4."""
    random = np.random.default_rng(0)
    a = random.standard_normal((8, 2048)).astype(np.float32)
    b = random.standard_normal((5632, 8)).astype(np.float32)
    whole = b @ a
    ours = best(lambda: reduction.reduced(a, b, 4), times=5)
    start = time.perf_counter()
    values = np.linalg.svd(whole, full_matrices=False).S
    peer = time.perf_counter() - start
    new_a, new_b, _ = reduction.reduced(a, b, 4)
    lost = np.linalg.norm(whole - new_b @ new_a) / np.linalg.norm(whole)
    optimum = np.linalg.norm(values[4:]) / np.linalg.norm(values)
    return [
        Row(
            "rank 8 → 4 of one 5632 × 2048 (numpy: SVD of ΔW in float32)",
            f"{ours * 1e3:.1f} ms",
            f"{peer:.2f} s",
            ours / peer,
            1 / 100,
        ),
        Row(
            "its relative error, and the optimum's (ratio: their relative difference)",
            f"{lost:.7f}",
            f"{optimum:.7f}",
            float(abs(lost - optimum) / optimum),
            1e-5,
        ),
    ]


def inputs(folder: str, layers: int) -> tuple[str, str, str]:
    """Write a base, a PEFT checkpoint that adapts all linear layers, and its packed file."""
    base, source, packed = (os.path.join(folder, name) for name in ("base", "logits", "x.vblora"))
    _write_base(base, layers)
    write_tinyllama_logits(source, base, layers=layers)
    save(converters.read(source), packed)
    os.sync()
    return base, source, packed


def _write_base(folder: str, layers: int) -> None:
    os.makedirs(folder)
    config = LLAMA_CONFIG | {"num_hidden_layers": layers, "tie_word_embeddings": False}
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config | {"dtype": "bfloat16"}, file)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32000, 2048)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}{name}.weight": (o, i) for name, (i, o) in TINYLLAMA.items()}
        shapes |= {f"{prefix}{norm}_layernorm.weight": (2048,) for norm in _NORMS}
    shapes |= {"model.norm.weight": (2048,), "lm_head.weight": (32000, 2048)}
    specs = [(name, "BF16", shape) for name, shape in shapes.items()]
    path = os.path.join(folder, "model.safetensors")
    safetensors.write(path, specs, _values(shapes.values()), metadata={"format": "pt"})


_NORMS = ("input", "post_attention")


def _values(shapes: Iterable[tuple[int, ...]]) -> Iterator[memoryview]:
    """Yield random bfloat16 values, the same for tensors of the same shape."""
    random = np.random.default_rng(0)
    made: dict[tuple[int, ...], memoryview] = {}
    for shape in shapes:
        if shape not in made:
            values = random.standard_normal(shape, dtype=np.float32) * 0.02
            made[shape] = values.astype(bfloat16).reshape(-1).view(np.uint8).data
        yield made[shape]


def _run(command: Sequence[str]) -> Measured:
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _unmapped(process.pid))
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(process.stderr.read().decode() if process.stderr else "")
    return Measured(seconds, peak)


def _unmapped(pid: int) -> int:
    """Return the bytes of a process's resident memory that belong to no file (Linux)."""
    try:
        with open(f"/proc/{pid}/status") as file:
            lines = dict(line.split(":", 1) for line in file)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(lines.get(key, "0 kB").split()[0]) * 1024 for key in ("RssAnon", "RssShmem"))


if __name__ == "__main__":
    print_table(rows())
