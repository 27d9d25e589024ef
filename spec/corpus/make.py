"""Write the corpus: the files in `valid/`, `invalid/` and `banks/`, and `verdicts.json`.

The files are committed. If an existing file would now be written differently, this script or the
library has changed, which is an error: run with ``--force`` only if you know which one is wrong.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from spec.corpus import invalid, thin, valid
from tests import forge
from vbfmt import Adapter

HERE = Path(__file__).parent
VERDICTS = "verdicts.json"


def corpus() -> dict[str, bytes]:
    """Return every file of the corpus by its path in this folder."""
    good, bad = valid.files(), invalid.files()
    # A thin file has the same content and the same digest as its embedded form.
    without = {f"thin-{name}": pair for name, pair in thin.valid().items()}
    verdicts = {
        "valid": {
            name: content(data, adapter) for name, (data, adapter) in {**good, **without}.items()
        },
        "invalid": {
            name: {"kind": file.kind, "part": file.part, "rule": file.rule}
            for name, file in bad.items()
        },
    }
    return {
        VERDICTS: _text(verdicts),
        **{f"valid/{name}.vblora": data for name, (data, _) in good.items()},
        **{f"valid/{name}.vblora": thin.thin(data) for name, (data, _) in without.items()},
        **{f"invalid/{name}.vblora": file.data for name, file in bad.items()},
        **{f"banks/{name}": data for name, data in thin.banks().items()},
    }


def _text(verdicts: dict[str, dict[str, Any]]) -> bytes:
    """Return JSON text with one file per line."""
    groups = []
    for group, files in verdicts.items():
        lines = (f"{json.dumps(name)}:{_json(verdict)}" for name, verdict in files.items())
        groups.append(f'"{group}":{{\n' + ",\n".join(lines) + "\n}")
    return ("{\n" + ",\n".join(groups) + "\n}\n").encode()


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True)


def content(data: bytes, adapter: Adapter) -> dict[str, Any]:
    """Return the content that a reader must find. It is computed from the adapter that was written,
    with Python's floats and without the library's code for reading or composing."""
    rows = [_all_weights(stored) for stored in adapter.weights.tolist()]
    return {
        "digest": "sha256:" + sha256(data[: 32 + len(forge.header_of(data))]),
        "h": adapter.h,
        "b": adapter.b,
        "k": adapter.k,
        "bank": _sha256_of(struct.iter_unpack("<f", adapter.bank.tobytes()), "<f"),
        "indices": _sha256_of(([i] for row in adapter.indices.tolist() for i in row), "<H"),
        "weights": _sha256_of(([w] for row in rows for w in row), "<f"),
        "modules": [
            {
                "name": module.name,
                "in_features": module.in_features,
                "out_features": module.out_features,
                "rank": module.rank,
                "fan_in_fan_out": module.fan_in_fan_out,
                **_factors(adapter, module.name, rows),
            }
            for module in adapter
        ],
        "tensors": [
            {
                "name": name,
                "dtype": tensor.dtype,
                "shape": [str(size) for size in tensor.shape],
                "bytes": tensor.data.tobytes().hex(),
            }
            for name, tensor in adapter.tensors.items()
        ],
        "base_model": [adapter.base_model, adapter.base_revision],
        "config": adapter.config,
        "metadata": dict(adapter.metadata),
    }


def _all_weights(stored: Sequence[float]) -> list[float]:
    total = 0.0
    for weight in stored:
        total += weight
    return [_float32(1 - total), *stored]


def _factors(adapter: Adapter, name: str, weights: Sequence[Sequence[float]]) -> dict[str, str]:
    """Return the hashes of A and of Bᵀ, each row by row."""
    here = adapter.rows(name)
    bank = adapter.bank.tolist()
    values = []
    for indices, row in zip(adapter.indices[here].tolist(), weights[here], strict=True):
        for element in range(adapter.b):
            total = 0.0
            for index, weight in zip(indices, row, strict=True):
                total += weight * bank[index][element]
            values.append([_float32(total)])
    module = adapter[name]
    middle = module.rank * module.in_features
    return {
        "A": _sha256_of(values[:middle], "<f"),
        "B_transposed": _sha256_of(values[middle:], "<f"),
    }


def _float32(value: float) -> float:
    (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    return float(rounded)


def _sha256_of(values: Iterable[Sequence[Any]], form: str) -> str:
    return sha256(b"".join(struct.pack(form, *value) for value in values))


def sha256(data: bytes) -> str:
    """Return the SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def main(force: bool = False) -> int:
    """Write missing files; report files that would differ."""
    wanted = corpus()
    changed = 0
    for name, data in wanted.items():
        path = HERE / name
        path.parent.mkdir(exist_ok=True)
        if path.exists() and path.read_bytes() != data and not force:
            print(f"{name}: DIFFERS from what is made now")
            changed = 1
        elif not path.exists() or force:
            path.write_bytes(data)
    for path in [*HERE.glob("*/*.vblora"), *HERE.glob("banks/*")]:
        if path.relative_to(HERE).as_posix() not in wanted:
            print(f"{path.relative_to(HERE)}: is not made any more")
            changed = 1
    print(f"{len(wanted) - 1} files, {sum(map(len, wanted.values()))} bytes with the verdicts")
    return changed


if __name__ == "__main__":
    sys.exit(main("--force" in sys.argv[1:]))
