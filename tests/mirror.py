"""Simulate a machine of the other byte order: ``python -m tests.mirror``.

To a little-endian machine, big-endian numbers are what little-endian ones are to a big-endian
machine: not its own. So the library is loaded with every ``<`` of its numpy dtypes turned into
``>``; code that
relies on the machine's own order then gives wrong results, as it would there. Prints JSON: whether
the written files are the golden files with every number's bytes reversed, the rows made from some
logits, and the number of changed dtypes.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from tests.conftest import ROOT
from tests.forge import parts, with_section

_LITERAL = re.compile(r'"<((?:[fiuc][248]|c16)|)"')
_MIRRORED = ("vbfmt.", "spec.golden")


class Mirror(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Loads the library's modules with the opposite byte order."""

    turned = 0

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(_MIRRORED):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.origin is None or spec.submodule_search_locations is not None:
            return None
        return importlib.util.spec_from_file_location(name, spec.origin, loader=self)

    def get_filename(self, fullname: str) -> str:
        return str(ROOT / (fullname.replace(".", "/") + ".py"))

    def get_data(self, path: str) -> bytes:
        if path.endswith(".pyc"):
            raise OSError
        with open(path, encoding="utf-8") as file:
            text, count = _LITERAL.subn(r'">\1"', file.read())
        Mirror.turned += count
        return text.encode()


def reversed_numbers(data: bytes) -> bytes:
    """Return a golden file with the bytes of each number in its sections reversed. Tensors that the
    golden script gives as raw bytes are unchanged."""
    _, header, _ = parts(data)
    sizes = [4, 1 if header["h"] <= 256 else 2, 4]
    sizes += [4 if dtype == "F32" else 1 for _, dtype, _ in header["tensors"]]
    for number, size in enumerate(sizes):

        def reverse(content: bytearray, size: int = size) -> None:
            content[:] = np.frombuffer(content, "u1").reshape(-1, size)[:, ::-1].tobytes()

        data = with_section(data, number, reverse)
    return data


def some_logits() -> np.ndarray:
    """Return logits (30, 300), some of them equal."""
    return np.random.default_rng(0).integers(-50, 50, (30, 300)) / 16


def main() -> None:
    """See the module's docstring."""
    sys.meta_path.insert(0, Mirror())
    from spec.golden.make import GOLDEN
    from vbfmt import Adapter, Module, dumps, loads
    from vbfmt._math.admixture import rows_from_selection
    from vbfmt._math.selection import select_top_k

    result: dict[str, Any] = {}
    for name, make in GOLDEN.items():
        expected = reversed_numbers((ROOT / "spec" / "golden" / name).read_bytes())
        written = dumps(make())
        again = loads(expected)
        factors = [again.factors(module.name) for module in again]
        same = all(
            np.array_equal(x, y)
            for module, pair in zip(make(), factors, strict=True)
            for x, y in zip(make().factors(module.name), pair, strict=True)
        )
        result[name] = written == expected and again == make() and same
    rows = rows_from_selection(select_top_k({"m": some_logits()}, 3), 300)
    result["rows"] = [rows.indices.tolist(), rows.weights.tolist()]
    adapter = Adapter.from_rows(np.ones((300, 2)), {Module("m", 30, 30, 1): rows})
    result["packed from logits"] = loads(dumps(adapter)) == adapter
    result["turned"] = Mirror.turned
    print(json.dumps(result))


if __name__ == "__main__":
    main()
