"""Write the golden adapters and a packed checkpoint, and print the hashes of the files as JSON.

The script imports only the library, so that it runs with any installation of it.
"""

from __future__ import annotations

import hashlib
import json
import locale
import os
import platform
import runpy
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np

import vbfmt
from vbfmt._math.admixture import rows_from_selection
from vbfmt._math.selection import select_top_k
from vbfmt.converters import peft

ROOT = Path(__file__).parents[1]


def adapters() -> dict[str, vbfmt.Adapter]:
    """Return the golden adapters, the trained checkpoint in tests/data, and an adapter from logits
    with ties."""
    golden = runpy.run_path(os.fspath(ROOT / "spec" / "golden" / "make.py"))["GOLDEN"]
    found = {name.removesuffix(".vblora"): make() for name, make in golden.items()}
    found["minilm"] = peft.read(ROOT / "tests" / "data" / "minilm-vblora")
    rng = np.random.default_rng(20240515)
    logits = rng.integers(-(2**20), 2**20, (4000, 512)).astype(np.float64) / 2**17
    rows = rows_from_selection(select_top_k({"m": logits}, 5), 512)
    bank = np.arange(1024, dtype="<f4").reshape(512, 2)
    module = vbfmt.Module("m", 4000, 4000, 1)
    found["from logits"] = vbfmt.Adapter.from_rows(bank, {module: rows})
    return found


def main() -> None:
    """See the module's docstring."""
    locale.setlocale(locale.LC_ALL, "")
    digests = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, adapter in adapters().items():
            path = Path(folder) / "x.vblora"
            vbfmt.save(adapter, path, overwrite=True)
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            factors = hashlib.sha256()
            for _, a, b in vbfmt.load(path).iter_factors():
                factors.update(a.tobytes() + b.tobytes())
            digests[f"{name}: factors"] = factors.hexdigest()
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "msgpack": ".".join(map(str, msgpack.version)),
        "ml_dtypes": ml_dtypes.__version__,
        "vbfmt": vbfmt.__file__,
    }
    json.dump({"versions": versions, "digests": digests}, sys.stdout)


if __name__ == "__main__":
    main()
