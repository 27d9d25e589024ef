"""Batches of many adapters, compared with the base alone and with PEFT's LoRA (TinyLlama, r 4, k
2).

``python -m tests.bench serving --device cuda`` measures on a GPU: all 22 layers, in bfloat16, in
about two minutes. With ``--compile``, only decoding is measured, with base and pool as CUDA graphs.
On a CPU, times are the CPU time of one thread, which other work on the machine changes little. With
``--threads``, PyTorch has more threads, and times are wall-clock times.

* `speed`: time of a step; `memory`: bytes and times of adapters that are added
* `models`: what is measured; `setting`: where and how
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from tests.bench.serving.memory import memory_of_7b, residency
from tests.bench.serving.models import base_of, modules_of, random_adapters
from tests.bench.serving.setting import SAMPLES, Setting, usual
from tests.bench.serving.speed import beside_base, beside_peft, by_residents, pool_of
from tests.bench.shapes import TINYLLAMA
from tests.bench.table import Row, print_table


def rows() -> Iterator[Row]:
    """Return the rows of this subject."""
    yield from _rows(usual("cpu"))


@torch.inference_mode()
def _rows(setting: Setting) -> Iterator[Row]:
    torch.set_num_threads(setting.threads)
    adapters = random_adapters(modules_of(TINYLLAMA, setting.layers), SAMPLES)
    base = base_of(setting)
    if setting.compiled:
        yield beside_base(setting, base, pool_of(base, adapters, SAMPLES))
        return
    yield by_residents(setting, base, adapters)
    yield from beside_peft(setting, base, adapters)
    yield from residency()
    yield from memory_of_7b()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure with the settings of a command line and return the exit status: 1 if a bound is
    missed."""
    parser = argparse.ArgumentParser(description="Mixed batches beside PEFT's.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, help="2 on cpu, else 22")
    parser.add_argument("--dtype", help="of the base: float32 on cpu, else bfloat16")
    parser.add_argument("--compile", action="store_true", help="decode alone, with CUDA graphs")
    parser.add_argument(
        "--threads", type=int, default=1, help="number of PyTorch's threads on a CPU"
    )
    given = parser.parse_args(arguments)
    setting = usual(given.device)
    setting = replace(
        setting,
        layers=given.layers or setting.layers,
        dtype=getattr(torch, given.dtype) if given.dtype else setting.dtype,
        compiled=given.compile,
        threads=given.threads,
    )
    return 0 if print_table(_rows(setting)) else 1
