"""Training steps compared with PEFT's VB-LoRA and LoRA (TinyLlama, h 2048, b 256, k 2, r 4).

On a GPU, in about five minutes, with compiled steps and all layers of Llama-2-7B (61 GiB of GPU
memory): ``python -m tests.bench training --device cuda --layers 22``
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import cast

import peft
import torch
from torch import nn

from tests.bench.table import Row, print_table, run
from vbfmt.torch import (
    LazyAdamW,
    VBLoRAConfig,
    adapters_of,
    inject,
    load_packed,
    param_groups,
    save_packed,
)
from vbfmt.torch.admixture import Admixture

SIZES = {"num_vectors": 2048, "vector_length": 256, "topk": 2}
RANK = 4
VOCABULARY = 1000
SHAPES = {
    "TinyLlama": {"hidden_size": 2048, "intermediate_size": 5632, "num_key_value_heads": 4},
    "Llama-2-7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_key_value_heads": 32},
}


@dataclass(frozen=True)
class Setting:
    """The device and the model to measure on.

    Attributes:
        device: cpu or cuda.
        layers: number of layers of the model; TinyLlama has 22.
        threads: number of PyTorch's threads on a CPU.
        dtype: dtype of the base; all methods train in float32.
        shape: shape of the layers, a key of `SHAPES`.
        compiled: whether steps go through torch.compile.
    """

    device: str = "cpu"
    layers: int = 4
    threads: int = 1
    dtype: str = "float32"
    shape: str = "TinyLlama"
    compiled: bool = False

    def arguments(self) -> list[str]:
        """Return these settings as command-line arguments for another process."""
        names = [field.name for field in fields(self) if field.name != "compiled"]
        return [f"--{name}={getattr(self, name)}" for name in names]


def rows(setting: Setting = Setting()) -> Iterator[Row]:
    """Yield the rows of this subject. Steps are also measured on a base in bfloat16."""
    torch.set_num_threads(setting.threads)
    # Start it before anything large is in memory, because a process inherits the peak of its
    # parent.
    peaks = {name: _peak(name, setting) for name in ("vbfmt", PEFT)}
    half = replace(setting, dtype="bfloat16")
    yield _row_of_peaks(peaks)
    yield from _rows_of_parts(setting)
    yield from _rows_of_optimizers(setting)
    yield from _rows_of_steps(setting)
    yield from _rows_of_steps(half)
    if setting.device != "cpu":
        yield from _rows_of_steps(replace(half, shape="Llama-2-7B", layers=32))
        yield from _rows_of_steps(replace(half, compiled=True, layers=min(4, setting.layers)))


def _rows_of_parts(setting: Setting) -> list[Row]:
    """Measure composition without a model, and replacing the adapter in a running model."""
    models = {name: MODELS[name](setting) for name in ("vbfmt", PEFT)}
    where = f"{setting.device}, {setting.layers} layers"
    composing = _alternately({n: _composition(m, n) for n, m in models.items()}, setting)
    with tempfile.TemporaryDirectory() as folder:
        swapping = _alternately(
            {
                "vbfmt": _swap_packed(models["vbfmt"], Path(folder)),
                PEFT: _swap_top_k(models[PEFT], Path(folder)),
            },
            setting,
            times=3,
        )
    return [
        _times(f"compose all factors, forward and backward ({where})", composing, PEFT, 0.5),
        _times("another adapter in a running model, from its file", swapping, PEFT, 0.2),
    ]


def _rows_of_optimizers(setting: Setting) -> list[Row]:
    """Compare `LazyAdamW`, which updates only the logits that a pass selected, with fused AdamW."""
    works, states = {}, {}
    for name, sparse in (("LazyAdamW", True), ("AdamW", False)):
        model = _ours(setting)
        groups = param_groups(model, sparse_logits=sparse)
        optimizer = LazyAdamW(groups) if sparse else torch.optim.AdamW(groups, fused=True)
        for layer in adapters_of(model).all_layers().values():
            logits = cast(Admixture, layer.updates["default"]).logits
            selected = logits.detach().topk(SIZES["topk"], dim=1).indices
            logits.grad = torch.zeros_like(logits).scatter_(1, selected, 1.0)
        optimizer.step()
        works[name], states[name] = optimizer.step, _bytes_of(optimizer)
    seconds = _alternately(works, setting)
    ours, theirs = seconds["LazyAdamW"], seconds["AdamW"]
    return [
        Row(
            "LazyAdamW's step on the logits (fused AdamW's)",
            f"{ours * 1e3:.1f} ms",
            f"{theirs * 1e3:.1f} ms",
            ours / theirs,
            None,
        ),
        Row(
            "its state for the logits selected by one pass (AdamW's for all)",
            f"{states['LazyAdamW'] / 1e6:.2f} MB",
            f"{states['AdamW'] / 1e6:.2f} MB",
            states["LazyAdamW"] / states["AdamW"],
            None,
        ),
    ]


def _bytes_of(optimizer: torch.optim.Optimizer) -> int:
    tensors = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _rows_of_steps(setting: Setting) -> list[Row]:
    """Measure whole training steps on one base."""
    models = {name: make(setting) for name, make in MODELS.items()}
    long, short = (
        _rounds({n: _step(m, tokens, setting) for n, m in models.items()}, setting, times)
        for tokens, times in ((512, 5), (32, 40))
    )
    added = {name: _difference(short[name], short[BASE]) for name in ("vbfmt", PEFT)}
    long, short = _fastest(long), _fastest(short)
    step = f"whole step, {setting.layers} layers of {setting.shape}, base in {setting.dtype}"
    step += ", compiled" * setting.compiled
    return [
        _times(f"{step}, 512 tokens", long, "LoRA", 1.1),
        _times(f"{step}, 512 tokens", long, PEFT, 1.0),
        _times(f"{step}, 32 tokens", short, PEFT, 0.85),
        _times("the same, minus the time of the frozen base", added, PEFT, 0.5),
    ]


def _row_of_peaks(peaks: dict[str, int]) -> Row:
    ours, theirs = peaks["vbfmt"], peaks[PEFT]
    return Row(
        f"peak memory of 3 steps, 512 tokens ({PEFT})",
        f"{ours / 2**20:.0f} MiB",
        f"{theirs / 2**20:.0f} MiB",
        ours / theirs,
        1.0,
    )


def _times(what: str, seconds: dict[str, float], peer: str, bound: float) -> Row:
    ours, theirs = seconds["vbfmt"], seconds[peer]
    return Row(
        f"{what} ({peer})", f"{ours * 1e3:.1f} ms", f"{theirs * 1e3:.1f} ms", ours / theirs, bound
    )


def _base(setting: Setting) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[setting.shape],
        num_hidden_layers=setting.layers,
        num_attention_heads=32,
        vocab_size=VOCABULARY,
    )
    with torch.device(setting.device):
        return LlamaForCausalLM(config).to(getattr(torch, setting.dtype)).train()


def _ours(setting: Setting) -> nn.Module:
    model = _base(setting)
    inject(model, VBLoRAConfig(r=RANK, target_modules="all-linear", **SIZES))
    return model


def _peft(setting: Setting) -> nn.Module:
    return _with(peft.VBLoRAConfig(r=RANK, target_modules="all-linear", **SIZES), setting)


def _lora(setting: Setting) -> nn.Module:
    return _with(peft.LoraConfig(r=RANK, target_modules="all-linear"), setting)


def _with(config: peft.PeftConfig, setting: Setting) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(_base(setting), config).train()


PEFT = "PEFT VB-LoRA"
BASE = "frozen base"
MODELS: dict[str, Callable[[Setting], nn.Module]] = {
    "vbfmt": _ours,
    PEFT: _peft,
    "LoRA": _lora,
    BASE: lambda setting: _base(setting).requires_grad_(False),
}


def _composition(model: nn.Module, name: str) -> Callable[[], object]:
    """Return a function that composes the factors of all layers and computes the gradients of
    logits and bank, without a model."""
    if name == "vbfmt":
        composition = adapters_of(model).adapter().composition
        assert composition is not None

        def factors() -> list[torch.Tensor]:
            composition.begin()
            made = [factor for layer in composition.layers for factor in layer.factors()]
            composition.end()
            return made
    else:
        layers = [m for m in model.modules() if isinstance(m, peft.tuners.vblora.layer.VBLoRALayer)]

        def factors() -> list[torch.Tensor]:
            return [factor for layer in layers for factor in layer._get_lora_matrices("default")]

    gradients = [torch.randn_like(factor) for factor in factors()]

    def work() -> None:
        model.zero_grad()
        torch.autograd.backward(factors(), gradients)

    return work


def _swap_packed(model: nn.Module, folder: Path) -> Callable[[], object]:
    path = folder / "adapter.vblora"
    save_packed(model, path, adapter_name="default")
    return lambda: load_packed(model, path, adapter_name="other")


def _swap_top_k(model: nn.Module, folder: Path) -> Callable[[], object]:
    """Load PEFT's top-k form under another name, and drop the adapter that had that name."""
    assert isinstance(model, peft.PeftModel)
    cast(peft.VBLoRAConfig, model.peft_config["default"]).save_only_topk_weights = True
    model.save_pretrained(str(folder / "topk"))

    def work() -> None:
        if "other" in model.peft_config:
            model.set_adapter("default")
            model.delete_adapter("other")
        model.load_adapter(str(folder / "topk"), "other")
        model.set_adapter("other")

    return work


def _step(model: nn.Module, tokens: int, setting: Setting) -> Callable[[], object]:
    """Return a training step: forward, backward and fused AdamW, the default of transformers'
    Trainer."""
    own = "vblora" in model._modules
    groups = param_groups(model) if own else [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True) if groups else None
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (1, tokens), generator=generator).to(setting.device)
    # A gradient of the input, so that the backward pass runs through a frozen base, too.
    inputs = model.get_input_embeddings()(ids).detach().requires_grad_()
    called = torch.compile(model) if setting.compiled else model

    def work() -> None:
        model.zero_grad()
        called(inputs_embeds=inputs, labels=ids, use_cache=False).loss.backward()
        if optimizer is not None:
            optimizer.step()

    return work


def _alternately(
    works: dict[str, Callable[[], object]], setting: Setting, times: int = 9
) -> dict[str, float]:
    """Return the seconds of the fastest call of each."""
    return _fastest(_rounds(works, setting, times))


def _rounds(
    works: dict[str, Callable[[], object]], setting: Setting, times: int
) -> dict[str, list[float]]:
    """Return the seconds of every call of each. They take turns, so that other work on the machine
    affects all."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(times + 1):
        for name, work in works.items():
            _synchronize(setting)
            start = time.perf_counter()
            work()
            _synchronize(setting)
            if round_:  # the first is for warming up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _fastest(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: min(each) for name, each in seconds.items()}


def _difference(one: list[float], other: list[float]) -> float:
    """Return the median of the differences within a round. The machine changes less within a round
    than between rounds."""
    return statistics.median(a - b for a, b in zip(one, other, strict=True))


def _synchronize(setting: Setting) -> None:
    if setting.device != "cpu":
        torch.cuda.synchronize()


def _peak(name: str, setting: Setting) -> int:
    """Return the peak bytes of a process that trains: those that PyTorch allocated on a GPU, else
    the resident ones."""
    if setting.device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        _train(name, setting)
        return torch.cuda.max_memory_allocated()
    module = [sys.executable, "-m", "tests.bench.training", "--train", name]
    return run([*module, *setting.arguments()]).peak


def _train(name: str, setting: Setting) -> None:
    torch.set_num_threads(setting.threads)
    work = _step(MODELS[name](setting), 512, setting)
    for _ in range(3):
        work()


def main(options: list[str] | None = None) -> int:
    """Measure with the settings of the command line and return the exit status: 1 if a bound is
    missed."""
    parser = argparse.ArgumentParser(description="Training steps compared with PEFT's.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", help="of the base, for --train")
    parser.add_argument("--train", choices=MODELS, help="only train, for the peak of memory")
    parser.add_argument("--shape", choices=SHAPES, default="TinyLlama")
    arguments = parser.parse_args(options)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU: torch.cuda.is_available() is False")
    setting = Setting(
        arguments.device, arguments.layers, arguments.threads, arguments.dtype, arguments.shape
    )
    if arguments.train:
        _train(arguments.train, setting)
        return 0
    return 0 if print_table(rows(setting)) else 1


if __name__ == "__main__":
    sys.exit(main())
