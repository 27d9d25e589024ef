"""``vbfmt merge`` beside PEFT's merge_and_unload + save_pretrained and beside a plain copy.

``python -m tests.bench.merge`` makes a base of TinyLlama's shape (bfloat16, 2.2 GB) and one four
times as large in a temporary folder, measures whole processes one after the other, and removes it.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import vbfmt
from vbfmt.admixture import canonical_rows
from vbfmt.converters import peft, safetensors

HIDDEN, KV, INTERMEDIATE, VOCAB = 2048, 256, 5632, 32000
LAYERS = 22
H, B, R, K = 2048, 256, 4, 2
ROUNDS = 3

_SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}

_PEFT = """
import sys, torch
torch.set_num_threads(len(__import__("os").sched_getaffinity(0)))
from transformers import AutoModelForCausalLM
from peft import PeftModel
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""


@dataclass(frozen=True)
class Run:
    """One process: seconds, and the most resident memory without mapped pages, in bytes."""

    seconds: float
    peak: int


def make_base(folder: str, layers: int) -> None:
    """A Llama of random bfloat16 weights, in one file."""
    os.makedirs(folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": VOCAB,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.{name}.weight": shape for name, shape in _SHAPES.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{norm}.weight"] = (HIDDEN,)
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}
    specs = [(name, "BF16", shape) for name, shape in shapes.items()]
    path = os.path.join(folder, "model.safetensors")
    safetensors.write(path, specs, _values(shapes), metadata={"format": "pt"})


def _values(shapes: dict[str, tuple[int, ...]]) -> Iterator[memoryview]:
    from ml_dtypes import bfloat16

    random = np.random.default_rng(0)
    for shape in shapes.values():
        values = random.standard_normal(shape, dtype=np.float32)
        values *= 0.02
        yield values.astype(bfloat16).reshape(-1).view(np.uint8).data


def make_adapter(layers: int) -> vbfmt.Adapter:
    """All linear layers adapted, h 2048, b 256, r 4, k 2."""
    random = np.random.default_rng(1)
    rows = {}
    for layer in range(layers):
        for name, (out_features, in_features) in _SHAPES.items():
            module = vbfmt.Module(f"model.layers.{layer}.{name}", in_features, out_features, R)
            count = module.rows(B)
            first = random.integers(H, size=count)
            indices = np.stack([first, (first + random.integers(1, H, count)) % H], axis=1)
            shares = random.random((count, 1))
            weights = np.concatenate([shares, 1 - shares], axis=1)
            rows[module] = canonical_rows(indices, weights, H)
    bank = random.uniform(-0.02, 0.02, (H, B)).astype(np.float32)
    return vbfmt.Adapter.from_rows(bank, rows)


def run(*command: str) -> Run:
    """Run a process to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _anonymous(process.pid))
        time.sleep(0.005)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(process.stderr.read().decode() if process.stderr else "")
    return Run(seconds, peak)


def _anonymous(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status") as file:
            line = next((line for line in file if line.startswith("RssAnon")), "RssAnon: 0 kB")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(line.split()[1]) * 1024


def measure(folder: str, layers: int, *, peers: bool, rounds: int) -> dict[str, list[Run]]:
    """Every contender in turn, `rounds` times, on a base of so many layers."""
    base, packed, theirs = (os.path.join(folder, n) for n in ("base", "a.vblora", "peft"))
    out = os.path.join(folder, "out")
    make_base(base, layers)
    adapter = make_adapter(layers)
    vbfmt.save(adapter, packed)
    vbfmt_command = os.path.join(os.path.dirname(sys.executable), "vbfmt")
    copy = f"cp -r {base} {out} && sync {out}/*"
    contenders = {"vbfmt merge": (vbfmt_command, "merge", packed, "--base", base, "-o", out)}
    if peers:
        peft.write(adapter, theirs)
        contenders |= {
            "PEFT": (sys.executable, "-c", _PEFT, base, theirs, out),
            "cp -r + fsync": ("sh", "-c", copy),
        }
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    os.sync()
    for _ in range(rounds):
        for name, command in contenders.items():
            runs[name].append(run(*command))
            shutil.rmtree(out)
            os.sync()
    shutil.rmtree(base)
    return runs


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="vbfmt-bench-") as folder:
        runs = measure(folder, LAYERS, peers=True, rounds=ROUNDS)
        large = measure(folder, 4 * LAYERS + 18, peers=False, rounds=1)["vbfmt merge"][0]
    ours = runs["vbfmt merge"]
    print(f"merge into a bf16 base of 2.2 GB, medians of {ROUNDS} rounds, whole processes")
    print(f"{'':<24}{'seconds':>9}{'ours / theirs':>15}{'peak heap MB':>14}")
    for name, measured in runs.items():
        seconds = statistics.median(each.seconds for each in measured)
        ratios = [one.seconds / each.seconds for one, each in zip(ours, measured, strict=True)]
        peak = max(each.peak for each in measured) / 1e6
        print(f"{name:<24}{seconds:>9.2f}{statistics.median(ratios):>15.2f}{peak:>14.0f}")
    print(f"{'vbfmt merge, 4 × base':<24}{large.seconds:>9.2f}{'':>15}{large.peak / 1e6:>14.0f}")


if __name__ == "__main__":
    main()
