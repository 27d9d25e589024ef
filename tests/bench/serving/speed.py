"""The time of a step, compared with the base alone and with PEFT's mixed batch, and by number of
adapters in the pool."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median

import peft
import torch
from torch import nn

from tests.bench.serving.models import lora_of, sharing
from tests.bench.serving.setting import (
    SAMPLES,
    VOCABULARY,
    Setting,
    Work,
    fastest,
    take_turns,
    usually,
)
from tests.bench.table import Row
from vbfmt import Adapter
from vbfmt.torch import AdapterPool

RESIDENT = (1, 64, 1_000, 10_000)
NAMES = [str(place) for place in range(SAMPLES)]


def pool_of(base: nn.Module, adapters: Mapping[str, Adapter], count: int) -> AdapterPool:
    """Return a pool with `count` adapters, some of them with the same content."""
    pool = AdapterPool(sharing(base))
    for place in range(count):
        pool.put(str(place), adapters[str(place % len(adapters))])
    return pool


def beside_peft(
    setting: Setting, base: nn.Module, adapters: Mapping[str, Adapter]
) -> Iterator[Row]:
    """Compare decoding, prefill and memory with PEFT and the same adapters."""
    pool = pool_of(base, adapters, SAMPLES)
    lora = lora_of(sharing(base), adapters)
    _require_the_same(pool, lora)
    yield from _decoding(setting, base, pool, lora)
    yield _prefilling(setting, pool, lora)
    yield _memory(pool, adapters)


def beside_base(setting: Setting, base: nn.Module, pool: AdapterPool) -> Row:
    """Compare decoding with the base alone, both compiled if the setting says so."""
    ids = setting.token_ids(SAMPLES, 1)
    ours, alone = pool.model, base
    if setting.compiled:
        ours, alone = (torch.compile(each, mode="reduce-overhead") for each in (ours, base))
    works = {
        "base": Work(lambda: alone(input_ids=ids, use_cache=False), 25),
        "vbfmt": Work(_in_pool(pool, lambda: ours(input_ids=ids, use_cache=False)), 25),
    }
    seconds = fastest(take_turns(setting, works, warm_up=4))
    return _times(f"{_decode(setting)} (base alone)", seconds["vbfmt"], seconds["base"], 1.10)


def _decoding(
    setting: Setting, base: nn.Module, pool: AdapterPool, lora: peft.PeftModel
) -> list[Row]:
    ids = setting.token_ids(SAMPLES, 1)
    works = {
        "base": Work(lambda: base(input_ids=ids, use_cache=False), 75),
        "vbfmt": Work(_in_pool(pool, lambda: pool.model(input_ids=ids, use_cache=False)), 75),
        "LoRA": Work(
            lambda: lora(input_ids=ids, use_cache=False, adapter_names=NAMES),
            75 if setting.device == "cpu" else 3,  # seconds each
        ),
    }
    found = take_turns(setting, works)
    seconds = fastest(found)
    added = {name: _added(found[name], found["base"]) for name in ("vbfmt", "LoRA")}
    return [
        _times(f"{_decode(setting)} (base alone)", seconds["vbfmt"], seconds["base"], 1.10),
        _times("the same (PEFT LoRA, adapter_names)", seconds["vbfmt"], seconds["LoRA"], None),
        _times("what is added to the base's time (PEFT LoRA)", added["vbfmt"], added["LoRA"], 0.1),
    ]


def _added(seconds: Sequence[float], base: Sequence[float]) -> float:
    """Return the median of the differences within a turn. The difference of two minima is mostly
    noise."""
    return median(one - other for one, other in zip(seconds, base, strict=False))


def _prefilling(setting: Setting, pool: AdapterPool, lora: peft.PeftModel) -> Row:
    ids, names = setting.token_ids(8, 512), NAMES[:8]
    times = 1 if setting.device == "cpu" else 3
    works = {
        "vbfmt": Work(
            _in_pool(pool, lambda: pool.model(input_ids=ids, use_cache=False), names), times
        ),
        "LoRA": Work(lambda: lora(input_ids=ids, use_cache=False, adapter_names=names), times),
    }
    seconds = fastest(take_turns(setting, works))
    what = f"prefill, 8 adapters × 512 tokens ({setting}) (PEFT LoRA)"
    return _times(what, seconds["vbfmt"], seconds["LoRA"], 1.1)


def by_residents(setting: Setting, base: nn.Module, adapters: Mapping[str, Adapter]) -> Row:
    """Measure a step by the number of adapters in the pool. Every step has other adapters, so rows
    are gathered again.

    Every batch has 64 different adapters, except if the pool has only one.
    """
    ids = setting.token_ids(SAMPLES, 1)
    pools = {str(count): pool_of(base, adapters, count) for count in RESIDENT}
    choice = random.Random(0)

    def step(pool: AdapterPool) -> None:
        present = range(len(pool))
        chosen = choice.sample(present, SAMPLES) if len(pool) > 1 else [0] * SAMPLES
        with pool.forward([str(place) for place in chosen]):
            pool.model(input_ids=ids, use_cache=False)

    works = {name: Work(lambda pool=pool: step(pool), 25) for name, pool in pools.items()}
    seconds = usually(take_turns(setting, works, warm_up=3))
    shown = ", ".join(f"{int(name):,}: {SAMPLES / each:,.0f}" for name, each in seconds.items())
    return Row(
        f"decode with 10,000 resident adapters (64 resident); tokens/s by number: {shown}",
        f"{SAMPLES / seconds['10000']:,.0f} tokens/s",
        f"{SAMPLES / seconds['64']:,.0f} tokens/s",
        seconds["10000"] / seconds["64"],
        1.05,
    )


def _memory(pool: AdapterPool, adapters: Mapping[str, Adapter]) -> Row:
    """Compare the bytes of the adapters and their bank with those of PEFT's factors in float32."""
    ours = pool.used_bytes
    theirs = sum(
        4 * module.rank * (module.in_features + module.out_features)
        for adapter in adapters.values()
        for module in adapter
    )
    return Row(
        f"memory of these {SAMPLES} adapters with their bank (PEFT LoRA)",
        f"{ours / 1e6:.1f} MB",
        f"{theirs / 1e6:.1f} MB",
        ours / theirs,
        1 / 50,
    )


def _require_the_same(pool: AdapterPool, lora: peft.PeftModel) -> None:
    device = next(lora.parameters()).device
    ids = torch.randint(0, VOCABULARY, (4, 5), generator=torch.Generator().manual_seed(1))
    names = ["3", "1", "__base__", "2"]
    for part in (ids.to(device), ids[:, :1].to(device)):
        with pool.forward(names):
            ours = pool.model(input_ids=part).logits
        theirs = lora(input_ids=part, adapter_names=names).logits
        tolerance = 1e-4 if ours.dtype == torch.float32 else 0.1
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def _in_pool(
    pool: AdapterPool, call: Callable[[], object], names: list[str] = NAMES
) -> Callable[[], None]:
    def work() -> None:
        with pool.forward(names):
            call()

    return work


def _decode(setting: Setting) -> str:
    return f"decode, {SAMPLES} samples, {SAMPLES} adapters ({setting})"


def _times(what: str, ours: float, theirs: float, bound: float | None) -> Row:
    return Row(what, f"{ours * 1e3:.1f} ms", f"{theirs * 1e3:.1f} ms", ours / theirs, bound)
