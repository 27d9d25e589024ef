"""Time and memory of plots and pages of an adapter with the Llama-2-7B shape.

There is no reference to compare with.
"""

from __future__ import annotations

import os
import sys
import tempfile

from spec.paper.parameters import random_adapter
from tests.bench.table import Row, print_table, run
from vbfmt import save
from vbfmt.estimate import Shape, linears
from vbfmt.estimate.models import PRESETS


def rows() -> list[Row]:
    """Return the rows of this subject."""
    command = os.path.join(os.path.dirname(sys.executable), "vbfmt")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        packed = os.path.join(folder, "llama.vblora")
        save(random_adapter(linears(PRESETS["llama-2-7b"]), Shape(2048, 256)), packed)
        for kind in ("png", "html"):
            out = os.path.join(folder, f"llama.{kind}")
            took = run([command, "plot", packed, "-o", out, "--force"], times=3)
            what = f"vbfmt plot to .{kind}, Llama-2-7B shape (N 39,040, h 2048, b 256)"
            found += [
                Row(f"{what}: seconds", f"{took.seconds:.2f} s", "none", took.seconds, 5),
                Row(f"{what}: MB", f"{took.peak / 1e6:.0f} MB", "none", took.peak / 1e6, 500),
            ]
        page = run([command, "inspect", packed, "--json"], times=10)
        verify = run([command, "verify", packed], times=10)
    found.append(
        Row(
            "vbfmt inspect, the same (vbfmt verify)",
            f"{page.seconds * 1e3:.0f} ms",
            f"{verify.seconds * 1e3:.0f} ms",
            page.seconds / verify.seconds,
            2,
        )
    )
    return found


if __name__ == "__main__":
    print_table(rows())
