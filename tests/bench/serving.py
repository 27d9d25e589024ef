"""Batches of many adapters beside the base alone and PEFT's LoRA, TinyLlama's layers, r 4, k 2.

``python -m tests.bench serving --device cuda`` measures on a GPU: all 22 layers, in bfloat16. On a
processor times are those that one thread spent on it, not the clock's: other work on the machine
changes them little.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import peft
import torch
from torch import Tensor, nn

from tests.bench.shapes import LAYERS, LLAMA_CONFIG, TINYLLAMA
from tests.bench.table import Row, print_table
from vbfmt import Adapter, Module, Rows, save
from vbfmt.torch import AdapterPool

RANK = 4
H = 256
LENGTH = 256
SAMPLES = 64
RESIDENT = (1, 64, 1_000, 10_000)
VOCABULARY = 1000
LLAMA_7B = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 4096),
    "self_attn.v_proj": (4096, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (4096, 11008),
    "mlp.up_proj": (4096, 11008),
    "mlp.down_proj": (11008, 4096),
}


@dataclass(frozen=True)
class Setting:
    """Where and on how much to measure.

    Attributes:
        device: cpu or cuda.
        layers: of the model; TinyLlama has 22.
        dtype: of the base; adapters compute in float32, PEFT's too.
        compiled: whether base and pool are compiled with CUDA graphs.
    """

    device: str
    layers: int
    dtype: torch.dtype
    compiled: bool = False


def rows() -> Iterator[Row]:
    """The rows of this subject."""
    yield from _rows(_usual("cpu"))


def _usual(device: str) -> Setting:
    if device == "cpu":
        return Setting(device, 2, torch.float32)
    return Setting(device, LAYERS, torch.bfloat16)


@torch.inference_mode()
def _rows(setting: Setting) -> Iterator[Row]:
    torch.set_num_threads(1)
    adapters = _adapters(_modules(TINYLLAMA, setting.layers), SAMPLES)
    base = _base(setting)
    pool = AdapterPool(_sharing(base))
    for name, adapter in adapters.items():
        pool.put(name, adapter)
    lora = _lora(_sharing(base), adapters)
    _require_the_same(pool, lora)
    yield from _decoding(setting, base, pool, lora)
    yield from _prefilling(setting, pool, lora)
    yield _memory_beside(pool, adapters)
    del lora, pool
    yield from _throughput(setting, base, adapters)
    yield from _residency()
    yield from _memory_of_7b()


def _decoding(
    setting: Setting, base: nn.Module, pool: AdapterPool, lora: peft.PeftModel
) -> list[Row]:
    ids = _ids(SAMPLES, 1, setting)
    names = [str(place) for place in range(SAMPLES)]
    ours, alone = pool.model, base
    if setting.compiled:
        ours, alone = (torch.compile(each, mode="reduce-overhead") for each in (ours, base))

    def mixed() -> None:
        with pool.forward(names):
            ours(input_ids=ids, use_cache=False)

    seconds = _alternately(
        {
            "base": lambda: alone(input_ids=ids, use_cache=False),
            "vbfmt": mixed,
            "LoRA": lambda: lora(input_ids=ids, use_cache=False, adapter_names=names),
        },
        setting,
        times=25,
    )
    what = f"decode, {SAMPLES} samples, {SAMPLES} adapters ({_where(setting)})"
    added = {name: seconds[name] - seconds["base"] for name in ("vbfmt", "LoRA")}
    return [
        _times(f"{what} (base alone)", seconds["vbfmt"], seconds["base"], 1.10),
        _times("the same (PEFT LoRA, adapter_names)", seconds["vbfmt"], seconds["LoRA"], None),
        _times("what is added to the base's time (PEFT LoRA)", added["vbfmt"], added["LoRA"], 0.1),
    ]


def _prefilling(setting: Setting, pool: AdapterPool, lora: peft.PeftModel) -> list[Row]:
    ids = _ids(8, 512, setting)
    names = [str(place) for place in range(8)]

    def mixed() -> None:
        with pool.forward(names):
            pool.model(input_ids=ids, use_cache=False)

    seconds = _alternately(
        {
            "vbfmt": mixed,
            "LoRA": lambda: lora(input_ids=ids, use_cache=False, adapter_names=names),
        },
        setting,
        times=1 if setting.device == "cpu" else 15,
    )
    what = f"prefill, 8 adapters × 512 tokens ({_where(setting)}) (PEFT LoRA)"
    return [_times(what, seconds["vbfmt"], seconds["LoRA"], 1.1)]


def _throughput(setting: Setting, base: nn.Module, adapters: dict[str, Adapter]) -> list[Row]:
    """Every step is for other adapters, as requests come: their rows are gathered anew."""
    ids = _ids(SAMPLES, 1, setting)
    pool = AdapterPool(_sharing(base))
    choice = random.Random(0)
    speeds = {}
    for count in RESIDENT:
        for place in range(len(pool), count):
            pool.put(str(place), adapters[str(place % SAMPLES)])

        def step() -> None:
            names = [str(choice.randrange(len(pool))) for _ in range(SAMPLES)]
            with pool.forward(names):
                pool.model(input_ids=ids, use_cache=False)

        speeds[count] = SAMPLES / _alternately({"": step}, setting, times=10)[""]
    shown = ", ".join(f"{count:,}: {speed:,.0f}" for count, speed in speeds.items())
    return [
        Row(f"decode with 10,000 resident adapters (64 resident); tokens/s by number: {shown}",
            f"{speeds[10_000]:,.0f} tokens/s", f"{speeds[64]:,.0f} tokens/s",
            speeds[64] / speeds[10_000], 1.05),
    ]  # fmt: skip


def _residency() -> list[Row]:
    """10,000 adapters of the whole of TinyLlama, in this machine's memory."""
    modules = _modules(TINYLLAMA, LAYERS)
    adapters = _adapters(modules, 64)
    pool = AdapterPool(_empty(modules))
    seconds = []
    before = _resident_bytes()
    for place in range(10_000):
        adapter = adapters[str(place % 64)]
        put = partial(pool.put, str(place), adapter)
        seconds.append(_seconds(put))
    grown = _resident_bytes() - before
    each = pool.reserved_bytes / len(pool)
    rows_of_one = _bytes_of_rows(adapters["0"])
    count = int(80e9 / each)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{place}.vblora" for place in range(64)]
        for place, path in enumerate(files):
            save(adapters[str(place)], path)
        from_files = [_seconds(lambda path=path: pool.put(path.stem, path)) for path in files]
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


def _memory_of_7b() -> list[Row]:
    modules = _modules(LLAMA_7B, 32)
    adapters = _adapters(modules, 16)
    pool = AdapterPool(_empty(modules))
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


def _memory_beside(pool: AdapterPool, adapters: dict[str, Adapter]) -> Row:
    """Bank and all; PEFT keeps its factors in float32."""
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


def _modules(shapes: dict[str, tuple[int, int]], layers: int) -> list[Module]:
    return [
        Module(f"model.layers.{layer}.{name}", i, o, RANK)
        for layer in range(layers)
        for name, (i, o) in shapes.items()
    ]


def _adapters(modules: Sequence[Module], count: int) -> dict[str, Adapter]:
    """Random adapters of these modules on one bank, by number."""
    generator = np.random.default_rng(0)
    bank = generator.uniform(-0.02, 0.02, (H, LENGTH)).astype("<f4")
    total = sum(module.rows(LENGTH) for module in modules)

    def values() -> tuple[np.ndarray, np.ndarray]:
        first = generator.integers(0, H // 2, (total, 1))
        indices = np.concatenate([first, first + H // 2], axis=1).astype("u1")
        return indices, generator.uniform(0.01, 0.5, (total, 1)).astype("<f4")

    indices, weights = values()
    by_module, start = {}, 0
    for module in modules:
        here = slice(start, start + module.rows(LENGTH))
        by_module[module] = Rows(indices[here], weights[here])
        start = here.stop
    first = Adapter.from_rows(bank, by_module)
    others = (replace(first, indices=i, weights=w) for i, w in (values() for _ in range(count - 1)))
    return {str(place): adapter for place, adapter in enumerate([first, *others])}


def _base(setting: Setting) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = LLAMA_CONFIG | {"num_hidden_layers": setting.layers, "vocab_size": VOCABULARY}
    with torch.inference_mode(False), torch.device(setting.device):
        model = LlamaForCausalLM(LlamaConfig(**sizes)).to(setting.dtype)
    return model.eval().requires_grad_(False)


def _sharing(base: nn.Module) -> nn.Module:
    """Another model with the same tensors: hooks and layers of one are not the other's."""
    with torch.inference_mode(False), torch.device("meta"):
        model = type(base)(base.config)
    model.load_state_dict(base.state_dict(), assign=True)
    for name, buffer in base.named_buffers():  # those that no state dict has
        path, _, leaf = name.rpartition(".")
        model.get_submodule(path)._buffers[leaf] = buffer
    return model.eval().requires_grad_(False)


def _empty(modules: Sequence[Module]) -> nn.Module:
    """A model of layers without values: pools of adapters are measured without running it."""
    root = nn.Module()
    for module in modules:
        at = root
        *path, leaf = module.name.split(".")
        for part in path:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = at.get_submodule(part)
        weight = torch.zeros(1).expand(module.out_features, module.in_features)
        layer = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        at.add_module(leaf, layer)
    return root


def _lora(base: nn.Module, adapters: dict[str, Adapter]) -> peft.PeftModel:
    """The same adapters expanded, as PEFT serves them together."""
    config = peft.LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules=[name.rpartition(".")[2] for name in TINYLLAMA]
    )
    with torch.inference_mode(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, config, adapter_name="0")
        for name in [*adapters][1:]:
            model.add_adapter(name, config)
    for name, adapter in adapters.items():
        for module, a, b in adapter.iter_factors():
            layer = model.base_model.model.get_submodule(module.name)
            layer.lora_A[name].weight.copy_(torch.from_numpy(a))
            layer.lora_B[name].weight.copy_(torch.from_numpy(b))
    return model.eval()


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


def _ids(samples: int, length: int, setting: Setting) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (samples, length), generator=generator)
    return ids.to(setting.device)


def _alternately(
    works: dict[str, Callable[[], object]], setting: Setting, times: int
) -> dict[str, float]:
    """Seconds of the fastest call of each; they take turns, so that all meet the same machine."""
    best = dict.fromkeys(works, float("inf"))
    clock = time.thread_time if setting.device == "cpu" else time.perf_counter
    for turn in range(times + 1):
        for name, work in works.items():
            _synchronize(setting)
            seconds = _seconds(lambda work=work: (work(), _synchronize(setting)), clock)
            if turn:  # the first is for warming up
                best[name] = min(best[name], seconds)
    return best


def _seconds(work: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> float:
    start = clock()
    work()
    return clock() - start


def _synchronize(setting: Setting) -> None:
    if setting.device != "cpu":
        torch.cuda.synchronize()


def _times(what: str, ours: float, theirs: float, bound: float | None) -> Row:
    return Row(what, f"{ours * 1e3:.1f} ms", f"{theirs * 1e3:.1f} ms", ours / theirs, bound)


def _bytes_of_rows(adapter: Adapter) -> int:
    return adapter.weights.nbytes + adapter.indices.nbytes


def _resident_bytes() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0


def _where(setting: Setting) -> str:
    dtype = str(setting.dtype).removeprefix("torch.")
    name = "CPU, one thread" if setting.device == "cpu" else torch.cuda.get_device_name()
    return f"{name}, {setting.layers} layers, {dtype}{', compiled' * setting.compiled}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure with the settings of a command line; the status is 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description="Mixed batches beside PEFT's.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, help="2 on cpu, else 22")
    parser.add_argument("--dtype", help="of the base: float32 on cpu, else bfloat16")
    parser.add_argument("--compile", action="store_true", help="base and pool, with CUDA graphs")
    given = parser.parse_args(arguments)
    usual = _usual(given.device)
    setting = replace(
        usual,
        layers=given.layers or usual.layers,
        dtype=getattr(torch, given.dtype) if given.dtype else usual.dtype,
        compiled=given.compile,
    )
    return 0 if print_table(_rows(setting)) else 1


if __name__ == "__main__":
    sys.exit(main())
