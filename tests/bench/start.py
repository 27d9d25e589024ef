"""Start-up times: imports and short commands."""

from __future__ import annotations

import os
import sys
import tempfile

import numpy as np

from tests.bench.table import Row, in_turns, print_table, python
from vbfmt import Adapter, Module, Rows, save


def rows() -> list[Row]:
    """Return the rows of this subject."""
    command = os.path.join(os.path.dirname(sys.executable), "vbfmt")
    with tempfile.TemporaryDirectory() as folder:
        packed = os.path.join(folder, "smollm2.vblora")
        save(_smollm2(), packed)
        version, click, verify, imports = in_turns(
            [command, "--version"],
            python("import click"),
            [command, "verify", packed],
            python("import numpy, click, msgpack"),
            times=25,
        )
    return [
        Row(
            "vbfmt --version (python -c 'import click')",
            _ms(version.seconds),
            _ms(click.seconds),
            version.seconds / click.seconds,
            1.25,
        ),
        Row(
            "vbfmt verify, SmolLM2-135M shape (python -c 'import numpy, click, msgpack')",
            _ms(verify.seconds),
            _ms(imports.seconds),
            verify.seconds / imports.seconds,
            1.5,
        ),
    ]


def _smollm2() -> Adapter:
    """Return a random adapter for a model of SmolLM2-135M's shape: 210 modules, h 256, b 64, k 2,
    r 4."""
    rng = np.random.default_rng(0)
    shapes = [(576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576)]
    modules = {}
    for layer in range(30):
        for number, (i, o) in enumerate(shapes):
            module = Module(f"model.layers.{layer}.module_{number}", i, o, rank=4)
            n = module.rows(64)
            first = rng.integers(0, 128, n)
            indices = np.stack([first, first + rng.integers(1, 128, n)], axis=1).astype("u1")
            weights = rng.uniform(0, 0.49, (n, 1)).astype("<f4")
            modules[module] = Rows(indices, weights)
    return Adapter.from_rows(rng.standard_normal((256, 64)), modules)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"


if __name__ == "__main__":
    print_table(rows())
