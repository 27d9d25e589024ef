"""Bytes and times of adapters that are added to a pool."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from tests.bench.serving.models import empty_of, modules_of, random_adapters
from tests.bench.serving.setting import cpu_seconds
from tests.bench.shapes import LAYERS, LLAMA_7B, TINYLLAMA
from tests.bench.table import Row
from vbfmt import Adapter, save
from vbfmt.torch import AdapterPool


def residency() -> list[Row]:
    """Measure 10,000 adapters of all layers of TinyLlama in main memory."""
    modules = modules_of(TINYLLAMA, LAYERS)
    adapters = random_adapters(modules, 64)
    pool = AdapterPool(empty_of(modules))
    seconds = []
    before = _resident_bytes()
    for place in range(10_000):
        adapter = adapters[str(place % 64)]
        put = partial(pool.put, str(place), adapter)
        seconds.append(cpu_seconds(put))
    grown = _resident_bytes() - before
    each = pool.reserved_bytes / len(pool)
    rows_of_one = _bytes_of_rows(adapters["0"])
    count = int(80e9 / each)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{place}.vblora" for place in range(64)]
        for place, path in enumerate(files):
            save(adapters[str(place)], path)
        from_files = [cpu_seconds(lambda path=path: pool.put(path.stem, path)) for path in files]
    return [
        Row("10,000 adapters of TinyLlama in one pool: bytes for each (its rows)",
            f"{each:,.0f} B, process +{grown / 1e6:,.0f} MB", f"{rows_of_one:,} B",
            each / rows_of_one, 1.1),
        Row("how many 80 GB hold, computed from it", f"{count:,}", "–", count, None),
        Row("put one of 10,000 (ms; median, slowest hundredth)",
            f"{median(seconds) * 1e3:.2f} ms, {np.quantile(seconds, 0.99) * 1e3:.2f} ms", "–",
            median(seconds) * 1e3, 5),
        Row("put one from its file (ms; median)", f"{median(from_files) * 1e3:.2f} ms", "–",
            median(from_files) * 1e3, 5),
    ]  # fmt: skip


def memory_of_7b() -> list[Row]:
    modules = modules_of(LLAMA_7B, 32)
    adapters = random_adapters(modules, 16)
    pool = AdapterPool(empty_of(modules))
    for place in range(256):
        pool.put(str(place), adapters[str(place % 16)])
    bank = adapters["0"].bank.nbytes
    each = (pool.reserved_bytes - bank) / len(pool)
    lora = sum(4 * m.rank * (m.in_features + m.out_features) for m in modules)
    rows_of_one = _bytes_of_rows(adapters["0"])
    return [
        Row(f"Llama-2-7B, r 4, h 256: kB for an adapter ({lora / 1e6:.1f} MB as PEFT's LoRA)",
            f"{each / 1e3:.1f} kB", f"{rows_of_one / 1e3:.1f} kB of rows", each / 1e3, 260),
        Row("the same beside its rows", f"{each:,.0f} B", f"{rows_of_one:,} B",
            each / rows_of_one, 1.1),
    ]  # fmt: skip


def _bytes_of_rows(adapter: Adapter) -> int:
    return adapter.weights.nbytes + adapter.indices.nbytes


def _resident_bytes() -> int:
    """Return the resident bytes of this process; 0 if the system does not report them."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0
