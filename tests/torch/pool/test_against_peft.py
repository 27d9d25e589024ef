"""A mixed batch in vbfmt, compared with PEFT's mixed batch of the same adapters, expanded to
LoRA."""

from __future__ import annotations

import peft
import torch

from tests.torch.models import llama, tokens
from tests.torch.pool.adapters import ALL, adapter, logits
from vbfmt.converters import lora
from vbfmt.torch import AdapterPool

NAMES = ["a", "b", "__base__", "c", "a"]
SIZES = {"a": {}, "b": {"r": 2, "topk": 3}, "c": {"rank_pattern": {r".*\.0\..*": 1}}}


def test_adapter_names_of_peft(tmp_path):
    found = {
        name: adapter(llama, ALL, seed, **sizes) for seed, (name, sizes) in enumerate(SIZES.items())
    }
    model = llama().eval()
    pool = AdapterPool(model)
    for name, each in found.items():
        pool.put(name, each)
        lora.write(each, tmp_path / name)
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path / "a", adapter_name="a")
    for name in "bc":
        theirs.load_adapter(tmp_path / name, adapter_name=name)
    theirs.eval()
    ids = tokens(rows=len(NAMES))
    with torch.no_grad():
        wanted = theirs(input_ids=ids, adapter_names=NAMES).logits
    with pool.forward(NAMES):
        torch.testing.assert_close(logits(model, ids), wanted, rtol=1e-5, atol=1e-5)
    mask = torch.ones_like(ids)
    mask[1, :4] = mask[3, :7] = 0  # padded on the left
    settings = {
        "attention_mask": mask, "adapter_names": NAMES, "max_new_tokens": 6, "do_sample": False,
        "pad_token_id": 0, "eos_token_id": None,
    }  # fmt: skip
    mixed, of_peft = pool.generate(ids, **settings), theirs.generate(input_ids=ids, **settings)
    assert torch.equal(mixed, of_peft)
