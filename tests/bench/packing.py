"""Packing a checkpoint of logits and expanding it to LoRA, compared with PEFT as whole
processes."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile

from tests.bench.shapes import LLAMA_CONFIG, write_tinyllama_logits
from tests.bench.table import Row, in_turns, print_table, python, run, run_python

_LOAD_WITH_PEFT = """
import sys, torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM
base, adapter, output = sys.argv[1:]
with torch.device("meta"):
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(base))
model = model.to_empty(device="cpu")  # no time and no memory for a base that is not needed
model = PeftModel.from_pretrained(model, adapter)
"""
_SAVE_TOPK = """
model.peft_config["default"].save_only_topk_weights = True
model.save_pretrained(output)
"""
_SAVE_AS_LORA = """
from peft import save_as_lora
save_as_lora(output, model, rank=4)
"""
_PYTHON_WITH_NUMPY = "import numpy"
_READ = "import sys, numpy, click, msgpack; open(sys.argv[1], 'rb').read()"


def rows(*, with_svd: bool = True) -> list[Row]:
    """Return the rows of this subject. The SVD of PEFT's ``save_as_lora`` takes a few minutes."""
    import json

    folder = tempfile.mkdtemp(prefix="vbfmt-bench-")
    try:
        base, source = os.path.join(folder, "base"), os.path.join(folder, "logits")
        os.makedirs(base)
        with open(os.path.join(base, "config.json"), "w") as file:
            json.dump(LLAMA_CONFIG, file)
        write_tinyllama_logits(source, base)
        return _measure(folder, base, source, with_svd=with_svd)
    finally:
        shutil.rmtree(folder)


def _measure(folder: str, base: str, source: str, *, with_svd: bool) -> list[Row]:
    command = os.path.join(os.path.dirname(sys.executable), "vbfmt")
    packed, lora = (os.path.join(folder, name) for name in ("x.vblora", "lora"))
    bare = run_python(_PYTHON_WITH_NUMPY, times=3)
    weights = os.path.join(source, "adapter_model.safetensors")
    pack, read = in_turns(
        [command, "pack", source, "-o", packed, "--force"], python(_READ, weights), times=20
    )
    resaved = os.path.join(folder, "topk")
    topk = run_python(_LOAD_WITH_PEFT + _SAVE_TOPK, base, source, resaved, times=3)
    expand = run([command, "expand", packed, "-o", lora, "--force"], times=5)
    result = [
        Row(
            "pack 103 MB of logits (PEFT: load, save as top-k)",
            f"{pack.seconds:.2f} s",
            f"{topk.seconds:.2f} s",
            pack.seconds / topk.seconds,
            1 / 12,
        ),
        Row(
            "pack 103 MB of logits (Python: import numpy, click, msgpack; read the file)",
            f"{pack.seconds * 1e3:.0f} ms",
            f"{read.seconds * 1e3:.0f} ms",
            pack.seconds / read.seconds,
            1.5,
        ),
        Row(
            "pack: peak memory above Python with numpy, MB",
            f"{(pack.peak - bare.peak) / 1e6:.0f} MB",
            f"{(topk.peak - bare.peak) / 1e6:.0f} MB",
            (pack.peak - bare.peak) / 1e6,
            200,
        ),
    ]
    if with_svd:
        svd = run_python(_LOAD_WITH_PEFT + _SAVE_AS_LORA, base, source, os.path.join(folder, "svd"))
        result.append(
            Row(
                "expand to LoRA, exact (PEFT: load, save_as_lora by SVD)",
                f"{expand.seconds:.2f} s",
                f"{svd.seconds:.0f} s",
                expand.seconds / svd.seconds,
                1 / 400,
            )
        )
    return result


if __name__ == "__main__":
    print_table(rows(with_svd="--without-svd" not in sys.argv))
