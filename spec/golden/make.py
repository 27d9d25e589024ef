"""Write the golden files of this folder. Existing files are never rewritten: if this script makes
different bytes for one, the library has changed what it writes, which is an error."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

from vbfmt import Adapter, Module, Rows, Tensor, dumps

HERE = Path(__file__).parent


def worked_example() -> Adapter:
    """The example that the specification walks through, byte by byte."""
    bank = np.array([[1, 2], [3, 4], [-1, 0.5]], dtype="<f4")
    module = Module("layer", in_features=4, out_features=2, rank=1)
    indices = np.array([[2, 0], [0, 1], [1, 2]], dtype="u1")
    weights = np.array([[0.25], [0.5], [0.0]], dtype="<f4")
    return Adapter.from_rows(bank, {module: Rows(indices, weights)}, base_model="example/base")


def wide_indices() -> Adapter:
    """h = 257: 16-bit indices; k = 3; two modules of different rank; Conv1D; every text field."""
    bank = np.arange(257 * 4, dtype="<f4").reshape(257, 4) / 1024
    first = Module("h.0.attn.c_attn", 8, 24, rank=2, fan_in_fan_out=True)
    second = Module("h.0.mlp.c_fc", 8, 32, rank=1, fan_in_fan_out=True)
    rows = {module: _rows(module.rows(4), 257, 3) for module in (second, first)}
    tensors = {
        "score.weight": Tensor.of(np.arange(6, dtype="<f4").reshape(2, 3)),
        "h.0.mlp.c_fc.bias": Tensor("BF16", (4,), np.arange(8, dtype="u1")),
        "empty": Tensor("I64", (0, 3), np.empty(0, dtype="u1")),
    }
    return Adapter.from_rows(
        bank,
        rows,
        tensors=tensors,
        base_model="example/größe",
        base_revision="0123abc",
        config='{"peft_type":"VBLORA","topk":3}',
        metadata={"task": "κλῖμαξ", "author": ""},
    )


def one_vector() -> Adapter:
    """Return an adapter with h = b = k = 1, which has no weights."""
    module = Module("w", 1, 1, rank=1)
    rows = Rows(np.zeros((2, 1), dtype="u1"), np.zeros((2, 0), dtype="<f4"))
    return Adapter.from_rows(np.array([[0.5]], dtype="<f4"), {module: rows})


def _rows(count: int, h: int, k: int) -> Rows:
    start = np.arange(count)[:, None] * 37
    indices = ((start + np.arange(k) * 101) % h).astype("<u2")
    weights = np.tile(np.array([[0.25, 0.125]], dtype="<f4"), (count, 1))
    return Rows(indices, weights)


GOLDEN = {
    "worked-example.vblora": worked_example,
    "wide-indices.vblora": wide_indices,
    "one-vector.vblora": one_vector,
}


def without_bank() -> dict[str, bytes]:
    """The worked example without its bank, and the bank (section 12)."""
    adapter = worked_example()
    bank = adapter.bank.tobytes()
    return {
        "thin/worked-example.vblora": dumps(adapter, bank="external"),
        f"thin/{hashlib.sha256(bank).hexdigest()}.bank": bank,
    }


def main() -> int:
    """Write the missing files; report existing ones that would differ."""
    changed = 0
    for name, data in {
        **{name: dumps(make()) for name, make in GOLDEN.items()},
        **without_bank(),
    }.items():
        path = HERE / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_bytes(data)
            print(f"{name}: written, {len(data)} bytes")
        elif path.read_bytes() != data:
            print(f"{name}: DIFFERS from what is written now")
            changed = 1
    return changed


if __name__ == "__main__":
    sys.exit(main())
