"""Top-k of logits, and all factors from rows, compared with torch in one process."""

from __future__ import annotations

import numpy as np

from tests.bench.shapes import llama_7b_logits
from tests.bench.table import Row, best, print_table
from vbfmt import Adapter, Module
from vbfmt._math.admixture import all_weights, rows_from_selection
from vbfmt._math.selection import select_top_k

_MODULES = {
    "q_proj": (4096, 4096),
    "k_proj": (4096, 4096),
    "v_proj": (4096, 4096),
    "o_proj": (4096, 4096),
    "gate_proj": (4096, 11008),
    "up_proj": (4096, 11008),
    "down_proj": (11008, 4096),
}


def rows() -> list[Row]:
    """Return the rows of this subject."""
    import torch

    torch.set_grad_enabled(False)
    logits = llama_7b_logits()
    tensor = torch.from_numpy(logits)
    ours = best(lambda: select_top_k({"logits": logits}, 2))
    theirs = best(lambda: tensor.topk(2, dim=-1))
    adapter = _adapter(logits)
    _require_the_same(adapter)
    factors = best(lambda: list(adapter.iter_factors()))
    gather = best(lambda: _peft_factors(adapter))
    at_once = best(lambda: _peft_subvectors(adapter))
    return [
        Row("top-k of 320 MB of logits (torch.topk)", _ms(ours), _ms(theirs), ours / theirs, 0.8),
        Row(
            "all factors of 39,040 sub-vectors (PEFT's gather and sum)",
            _ms(factors),
            _ms(at_once),
            factors / at_once,
            0.5,
        ),
        Row(
            "the same (PEFT's gather and sum in 448 calls, a factor each)",
            _ms(factors),
            _ms(gather),
            factors / gather,
            None,
        ),
    ]


def _adapter(logits: np.ndarray) -> Adapter:
    found = rows_from_selection(select_top_k({"logits": logits}, 2), 2048)
    bank = np.random.default_rng(1).uniform(-0.02, 0.02, (2048, 256)).astype("<f4")
    modules, start = {}, 0
    for layer in range(32):
        for name, (i, o) in _MODULES.items():
            module = Module(f"model.layers.{layer}.{name}", i, o, rank=4)
            here = slice(start, start + module.rows(256))
            modules[module] = type(found)(found.indices[here], found.weights[here])
            start = here.stop
    assert start == len(logits)
    return Adapter.from_rows(bank, modules)


_peft_inputs: dict[int, list] = {}


def _peft_factors(adapter: Adapter) -> list:
    """Compose A and B from top-k weights and indices as peft/tuners/vblora/layer.py does."""
    import torch

    if id(adapter) not in _peft_inputs:
        bank = torch.from_numpy(adapter.bank.copy())
        inputs = []
        for module in adapter:
            here = adapter.rows(module.name)
            weights = torch.from_numpy(all_weights(adapter.weights[here]))
            indices = torch.from_numpy(adapter.indices[here].astype(np.int64))
            middle = module.rank * module.in_features // 256
            tiles = module.out_features // 256
            inputs.append(
                (
                    bank,
                    weights[:middle].reshape(4, -1, 2),
                    indices[:middle].reshape(4, -1, 2),
                    weights[middle:].reshape(4, tiles, 2).transpose(0, 1).contiguous(),
                    indices[middle:].reshape(4, tiles, 2).transpose(0, 1).contiguous(),
                )
            )
        _peft_inputs[id(adapter)] = inputs
    result = []
    for bank, weights_a, indices_a, weights_b, indices_b in _peft_inputs[id(adapter)]:
        a = (weights_a.unsqueeze(-1) * bank[indices_a]).sum(-2).reshape(4, -1)
        b = (weights_b.unsqueeze(-1) * bank[indices_b]).sum(-2).transpose(1, 2).reshape(-1, 4)
        result.append((a, b))
    return result


def _peft_subvectors(adapter: Adapter) -> object:
    """Compute PEFT's expression for all rows at once."""
    import torch

    if -1 not in _peft_inputs:
        weights = torch.from_numpy(all_weights(adapter.weights))
        indices = torch.from_numpy(adapter.indices.astype(np.int64))
        _peft_inputs[-1] = [torch.from_numpy(adapter.bank.copy()), weights, indices]
    bank, weights, indices = _peft_inputs[-1]
    return (weights.unsqueeze(-1) * bank[indices]).sum(-2)


def _require_the_same(adapter: Adapter) -> None:
    for (_, a, b), (peft_a, peft_b) in zip(
        adapter.iter_factors(), _peft_factors(adapter), strict=True
    ):
        np.testing.assert_allclose(a, peft_a.numpy(), atol=2e-8)
        np.testing.assert_allclose(b, peft_b.numpy(), atol=2e-8)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


if __name__ == "__main__":
    print_table(rows())
