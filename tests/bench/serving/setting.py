"""The settings of the serving benchmark, and its clocks."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from tests.bench.shapes import LAYERS

SAMPLES = 64
VOCABULARY = 1000


@dataclass(frozen=True)
class Setting:
    """The device and the model to measure on.

    Attributes:
        device: cpu or cuda.
        layers: number of layers of the model; TinyLlama has 22.
        dtype: dtype of the base; adapters compute in float32, in PEFT too.
        compiled: whether base and pool are compiled with CUDA graphs.
        threads: number of PyTorch's threads on a CPU.
    """

    device: str
    layers: int
    dtype: torch.dtype
    compiled: bool = False
    threads: int = 1

    def __str__(self) -> str:
        if self.device == "cpu":
            name = "CPU, one thread" if self.threads == 1 else f"CPU, {self.threads} threads"
        else:
            name = torch.cuda.get_device_name()
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{name}, {self.layers} layers, {dtype}{', compiled' * self.compiled}"

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the time of a call: CPU time with one thread, else wall-clock time."""
        if self.device == "cpu" and self.threads == 1:
            return cpu_seconds(work)
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def token_ids(self, samples: int, length: int) -> Tensor:
        """Return random token ids, (samples, length)."""
        generator = torch.Generator().manual_seed(1)
        return torch.randint(0, VOCABULARY, (samples, length), generator=generator).to(self.device)


def usual(device: str) -> Setting:
    """Return the default settings for a device."""
    if device == "cpu":
        return Setting(device, 2, torch.float32)
    return Setting(device, LAYERS, torch.bfloat16)


@dataclass(frozen=True)
class Work:
    """Something to measure.

    Attributes:
        call: the function to measure.
        times: number of measured calls; warm-up calls are not counted.
    """

    call: Callable[[], object]
    times: int


def take_turns(
    setting: Setting, works: Mapping[str, Work], *, warm_up: int = 1
) -> dict[str, list[float]]:
    """Return the seconds of every call. The works take turns in random order, so that changes of
    the machine affect all of them, and none always follows the same other one."""
    found: dict[str, list[float]] = {name: [] for name in works}
    shuffle = random.Random(0).shuffle
    for turn in range(warm_up + max(work.times for work in works.values())):
        order = [name for name, work in works.items() if turn < warm_up + work.times]
        shuffle(order)
        for name in order:
            seconds = setting.seconds(works[name].call)
            if turn >= warm_up:
                found[name].append(seconds)
    return found


def fastest(found: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the time of the fastest call of each work."""
    return {name: min(seconds) for name, seconds in found.items()}


def usually(found: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median time of each work."""
    return {name: median(seconds) for name, seconds in found.items()}


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of this thread for a call."""
    start = time.thread_time()
    work()
    return time.thread_time() - start
