"""The valid files of the corpus: one for every option and every boundary of the format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from tests import forge
from vbfmt import Adapter, Module, Rows, Tensor, dumps
from vbfmt.tensors import BITS, byte_length

SMALLEST_SUBNORMAL = np.float32(1e-45)


def adapter(
    *modules: Module,
    h: int = 3,
    b: int = 2,
    k: int = 2,
    weights: list[float] | None = None,
    bank: Any = None,
    first: int = 0,
    **rest: Any,
) -> Adapter:
    """Return an adapter of these sizes. Row i selects vectors i + first, i + first + 1, … modulo h,
    all rows with the same stored weights (by default ¼, ⅛, …)."""
    modules = modules or (Module("layer", 2 * b, b, 1),)
    stored = [2.0 ** -(i + 2) for i in range(k - 1)] if weights is None else weights
    rows = {}
    for module in modules:
        count = module.rows(b)
        indices = (np.arange(count)[:, None] + first + np.arange(k)) % h
        if len({*np.float32([1 - sum(stored), *stored]).tolist()}) < k:
            indices = np.sort(indices, axis=1)  # equal weights are in ascending order of index
        rows[module] = Rows(
            indices.astype("u1" if h <= 256 else "<u2"),
            np.tile(np.array([stored], dtype="<f4"), (count, 1)),
        )
    bank = ((np.arange(h * b) % 509) - 200) / 64 if bank is None else bank
    return Adapter.from_rows(np.asarray(bank, dtype="<f4").reshape(h, b), rows, **rest)


def tensor(dtype: str, *shape: int) -> Tensor:
    """Return a tensor with the bytes 0, 37, 74, … modulo 251."""
    length = byte_length(dtype, shape)
    assert length is not None
    return Tensor(dtype, shape, (np.arange(length) * 37 % 251).astype("u1"))


def _with_header_end(remainder: int) -> Adapter:
    """Return a file whose header ends this number of bytes after a multiple of 64."""
    for length in range(1, 66):
        made = adapter(base_model="x" * length)
        if (32 + len(forge.header_of(dumps(made)))) % 64 == remainder:
            return made
    raise AssertionError(remainder)


def _near_thirds() -> Adapter:
    """Return a file with three almost equal weights, rounded towards zero so that w₀ is not below
    w₁."""
    third = float(np.nextafter(np.float32(1 / 3), np.float32(0)))
    return adapter(k=3, weights=[third, third])


def _remainder_by_order() -> Adapter:
    """Return a file whose w₀ depends on the order of the float64 sum: from large to small, as
    section 7 says, and rounded to float32 once, at the end."""
    weights = [0.3, 0.2, 0.1, 0.05, 1e-9, 1e-12, 1e-17]
    return adapter(h=8, k=8, weights=weights)


def _products_by_order() -> Adapter:
    """Return a file whose products must be added in order: ½ · 2 is lost
    when it is added to ¼ · 2⁶²."""
    return adapter(
        Module("layer", 1, 1, 1), b=1, k=3, weights=[0.25, 0.25], bank=[2, 2**62, -(2**62)]
    )


def _names_by_bytes() -> Adapter:
    """Return a file with names in ascending order of UTF-8 bytes, but not of UTF-16 units,
    collation or normal form."""
    names = [
        "Z",
        "a",
        "ä",
        "a\u0308",
        "\u00a0",
        "\u2028",
        "\ufeffmark",
        "\uffff",
        "\U00010000",
        "~",
    ]
    return adapter(*(Module(name, 2, 2, 1) for name in names))


def _minor(data: bytes, minor: int, change: Callable[[dict[str, Any]], object]) -> bytes:
    return forge.with_preamble(forge.with_header(data, change), minor=minor)


def optional(*features: str, **keys: Any) -> bytes:
    """Return a file that declares optional features and has these extra keys."""

    def change(header: dict[str, Any]) -> None:
        header["optional_features"] = list(features)
        header.update(keys)

    return forge.with_header(dumps(adapter()), change)


def _every_type() -> dict[str, Any]:
    """Return a value for an unknown key with every type and length that a header may use, 8 levels
    deep."""
    return {
        "": [None, True, False, 0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**64 - 1],
        "bin": [bytes(0), bytes(255), bytes(256)],
        "deep": [[[[[[]]]]]],
        "map": {f"{i:02}": i for i in range(16)},
        "str": ["x" * 31, "x" * 32, "x" * 255, "x" * 256],
    }


DEEP_CONFIG = '{"a":' + "[" * 63 + "]" * 63 + "}"
NUMBERS_CONFIG = '{"a":' + "1" * 1000 + ',"b":-' + "2" * 1000 + ',"c":1e999,"d":-0.5E-3}'
LOOSE_CONFIG = ' {\t"b" : [1, 2 ] ,\r\n "a":"\\u00e4\\/\\ud800\\"\\\\ \x7f", "":{}}\n'


def _sizes() -> dict[str, Adapter]:
    return {
        "one-vector": adapter(h=1, b=1, k=1),
        "k-1": adapter(k=1),
        "k-2": adapter(k=2),
        "k-3": adapter(k=3),
        "k-equals-h": adapter(h=5, k=5),
        "k-64": adapter(h=64, k=64, weights=[1 / 64] * 63),
        "h-255": adapter(h=255, b=1, first=253),
        "h-256": adapter(h=256, b=1, first=254),
        "h-257": adapter(h=257, b=1, first=255),
        "h-65536": adapter(h=65536, b=1, first=65534, bank=np.arange(65536) % 7),
        "b-1": adapter(b=1),
        "b-255": adapter(b=255),
        "b-4096": adapter(h=1, b=4096, k=1),
        "square-of-one-tile": adapter(Module("layer", 2, 2, 1)),
        "out-larger-than-in": adapter(Module("layer", 2, 10, 1)),
        "rank-3": adapter(Module("layer", 6, 4, 3)),
        "rank-300": adapter(Module("layer", 1, 1, 300), b=1, k=1),
        "ranks-per-module": adapter(
            Module("a", 4, 2, 1), Module("b", 4, 2, 5), Module("c", 2, 4, 2)
        ),
        "features-65536": adapter(Module("layer", 65536, 128, 1), h=2, b=128),
        "conv1d": adapter(Module("layer", 4, 2, 1, fan_in_fan_out=True)),
        "both-orientations": adapter(
            Module("a", 4, 2, 1, fan_in_fan_out=True), Module("b", 4, 2, 1)
        ),
        "modules-15": adapter(*(Module(f"m{i:02}", 2, 2, 1) for i in range(15))),
        "modules-16": adapter(*(Module(f"m{i:02}", 2, 2, 1) for i in range(16))),
        "modules-40": adapter(*(Module(f"layers.{i:03}.proj", 2, 4, 1) for i in range(40))),
    }


def _values() -> dict[str, Adapter]:
    largest = np.finfo(np.float32).max
    return {
        "weights-zero": adapter(k=3, weights=[0.0, 0.0]),
        "weights-tie-of-all": adapter(h=4, k=4, weights=[0.25] * 3),
        "weights-tie-of-two": adapter(weights=[0.5]),
        "weights-near-thirds": _near_thirds(),
        "weights-subnormal": adapter(k=3, weights=[float(SMALLEST_SUBNORMAL)] * 2),
        "weights-remainder-by-order": _remainder_by_order(),
        # The last bit of w₀ shows in which order 2⁻²⁵ and the terms of 2⁻⁵⁵ were added.
        "weights-sum-from-the-first": adapter(
            h=7, b=1, k=7, weights=[0.25, 2.0**-25, *[2.0**-55] * 4]
        ),
        "weights-sum-then-difference": adapter(
            h=7, b=1, k=7, weights=[2.0**-25, *[2.0**-55] * 4, 0.0]
        ),
        "weights-tie-when-rounded": adapter(k=3, weights=[0.4375, 0.125 + 2.0**-26]),
        "bank-negative-zero": adapter(bank=[-0.0, 0.0, 1, -1, 2, -2]),
        "bank-negative-zero-alone": adapter(h=2, b=1, k=1, bank=[-0.0, 1]),
        "bank-products-by-order": _products_by_order(),
        "bank-subnormal": adapter(bank=[1e-45, -1e-45, 1e-40, 1e-39, -1e-38, 0]),
        "bank-largest": adapter(bank=[largest, -largest, largest, largest, 0, -1]),
        "bank-cancels": adapter(weights=[0.5], bank=[1, 1e10, -1, -1e10, 1 + 2**-23, 3]),
    }


def _tensors() -> dict[str, Adapter]:
    several = {4: (2,), 6: (4,)}
    one_each = {
        f"tensor-{dtype.lower().replace('_', '-')}": adapter(
            tensors={"t": tensor(dtype, *several.get(BITS[dtype], (3,)))}
        )
        for dtype in sorted(BITS)
    }
    return {
        **one_each,
        "tensor-scalar": adapter(tensors={"t": tensor("F32")}),
        "tensor-of-nothing": adapter(tensors={"t": tensor("F32", 2, 0, 3)}),
        "tensor-of-nothing-enormous": adapter(tensors={"t": tensor("F4", 2**64 - 1, 0)}),
        "tensor-many-dimensions": adapter(tensors={"t": tensor("U8", *[1] * 20, 3)}),
        "tensor-f6-3-bytes": adapter(tensors={"t": tensor("F6_E2M3", 2, 2)}),
        "sections-empty-in-a-row": adapter(
            k=1, tensors={"a": tensor("U8", 0), "b": tensor("U8", 1), "c": tensor("I64", 0)}
        ),
        "sections-63-64-65": adapter(
            tensors={"a": tensor("U8", 63), "b": tensor("U8", 64), "c": tensor("U8", 65)}
        ),
        "tensor-names": adapter(tensors={n: tensor("U8", 1) for n in ("a.bias", "head", "größe")}),
    }


def _texts() -> dict[str, Adapter]:
    return {
        "base-model": adapter(base_model="example/base", base_revision="0123abc"),
        "base-model-without-revision": adapter(base_model="example/base"),
        "base-revision-alone": adapter(base_revision="main"),
        "base-model-empty": adapter(base_model="", base_revision=""),
        "config": adapter(config='{"peft_type":"VBLORA","topk":2}'),
        "config-empty": adapter(config="{}"),
        "config-64-deep": adapter(config=DEEP_CONFIG),
        "config-1000-digits": adapter(config=NUMBERS_CONFIG),
        "config-not-canonical": adapter(config=LOOSE_CONFIG),
        "metadata": adapter(metadata={"author": "", "task": "κλῖμαξ"}),
        "metadata-16": adapter(metadata={f"{i:02}": str(i) for i in range(16)}),
        "metadata-any-value": adapter(
            metadata={"a": "\0\x1b[2J\n\ufeff\U0001f600", "b": "x" * 300}
        ),
        "name-31-bytes": adapter(Module("n" * 31, 2, 2, 1)),
        "name-32-bytes": adapter(Module("n" * 32, 2, 2, 1)),
        "name-255-bytes": adapter(Module("n" * 255, 2, 2, 1)),
        "name-256-bytes": adapter(Module("n" * 256, 2, 2, 1)),
        "name-in-several-lists": adapter(
            Module("x", 2, 2, 1), tensors={"x": tensor("U8", 1)}, metadata={"x": "x"}
        ),
        "name-1024-bytes": adapter(Module("ä" * 512, 2, 2, 1)),
        "names-by-bytes": _names_by_bytes(),
        "header-ends-at-0": _with_header_end(0),
        "header-ends-at-1": _with_header_end(1),
        "header-ends-at-63": _with_header_end(63),
    }


def files() -> dict[str, tuple[bytes, Adapter]]:
    """Return name → the file and its content."""
    plain = adapter()
    made = {**_sizes(), **_values(), **_tensors(), **_texts()}
    newer = forge.with_preamble(dumps(plain), minor=1)
    forged = {
        "optional-feature": optional("colour"),
        "optional-feature-with-key": optional("colour", "shade", colour={"red": [1, 2]}),
        "optional-feature-every-type": optional("colour", colour=_every_type()),
        "minor-1": newer,
        "minor-65535": forge.with_preamble(dumps(plain), minor=65535),
        "minor-1-with-keys": _minor(dumps(plain), 1, lambda h: h.update(alpha=1, beta=None)),
        "minor-1-keys-by-bytes": _minor(
            dumps(plain), 1, lambda h: h.update({"": 0, "\n": 1, "\uffff": 2, "\U00010000": 3})
        ),
    }
    assert msgpack.unpackb(forge.header_of(forged["optional-feature"]))["optional_features"]
    return {
        **{name: (dumps(value), value) for name, value in made.items()},
        **{name: (data, plain) for name, data in forged.items()},
    }
