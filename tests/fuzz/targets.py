"""What is done with hostile input, and what must hold of it whatever the input is."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tests.fuzz import mutate
from vbfmt import dumps, errors, loads, strict_json
from vbfmt.converters import peft, safetensors
from vbfmt.tensors import Tensor


class Target(NamedTuple):
    """A way in.

    Attributes:
        run: takes any bytes; says what became of them; raises only if the library is at fault.
        mutate: damages an input, keeping its lengths and checksums right.
        seeds: makes inputs to begin with.
    """

    run: Callable[[bytes], str]
    mutate: Callable[..., bytes]
    seeds: Callable[[], list[bytes]]


def run_packed(data: bytes) -> str:
    """`loads`: what is accepted is canonical, and safe to use without a further check."""
    try:
        adapter = loads(data)
    except errors.VbfmtError as error:
        _require_one_line(error)
        return error.kind
    if adapter.N * adapter.b <= 1 << 20:
        for _, a, b in adapter.iter_factors():
            assert np.isfinite(a).all()
            assert np.isfinite(b).all()
    again = dumps(adapter)
    assert loads(again) == adapter
    return "accepted"


def run_checkpoint(data: bytes) -> str:
    """The PEFT reader, from config text and safetensors bytes to an adapter."""
    config, weights = mutate.split(data)
    try:
        tensors = safetensors.parse(memoryview(weights)).tensors
        said = strict_json.parse_object(config.decode(errors="replace")) if config else None
        adapter = peft.from_tensors(tensors, said)
    except errors.VbfmtError as error:
        _require_one_line(error)
        return error.kind
    except ValueError as error:
        if config and not strict_json.is_object(config.decode(errors="replace")):
            return "config"  # json_file.read makes a SourceError of it
        raise AssertionError("not one of the library's own errors") from error
    assert loads(dumps(adapter)) == adapter
    return "accepted"


def run_safetensors(data: bytes) -> str:
    """The safetensors header reader: what is accepted covers the file without hole or overlap."""
    _, weights = mutate.split(data)
    try:
        found = safetensors.parse(memoryview(weights))
    except errors.VbfmtError as error:
        _require_one_line(error)
        return error.kind
    (length,) = struct.unpack_from("<Q", weights)
    assert 8 + length + sum(t.data.size for t in found.tensors.values()) == len(weights)
    return "accepted"


def checkpoint_seeds() -> list[bytes]:
    """PEFT checkpoints in both forms, k from 1 to 3, with and without further tensors."""
    rng = np.random.default_rng(0)
    made = []
    for k, h, dtype in ((1, 3, "f4"), (2, 5, "f4"), (3, 6, "f8"), (2, 4, "f2")):
        bank = rng.standard_normal((h, 2)).astype(dtype)
        logits = {
            f"base_model.model.m{i}.vblora_logits_{f}": rng.standard_normal((2, 2, h)).astype(dtype)
            for i in range(2)
            for f in "AB"
        }
        top = {}
        for key, values in logits.items():
            order = np.argsort(-values, axis=2)[:, :, :k]
            shares = np.exp(np.take_along_axis(values, order, 2).astype("f8"))
            shares /= shares.sum(axis=2, keepdims=True)
            top[f"{key}_topk_indices"] = order.astype("u1")
            top[f"{key}_topk_weights"] = shares[:, :, : k - 1].astype(dtype)
        config = {"peft_type": "VBLORA", "r": 2, "topk": k, "num_vectors": h, "vector_length": 2}
        config |= {"target_modules": ["m0", "m1"], "base_model_name_or_path": "x", "bias": "none"}
        extra = {"base_model.model.classifier.weight": np.ones((2, 2), "f4")}
        for form in (logits, top, {**top, **extra}):
            arrays = {"base_model.vblora_vector_bank": bank, **form}
            tensors = {name: Tensor.of(array) for name, array in arrays.items()}
            made.append(mutate.joined(json.dumps(config).encode(), _safetensors(tensors)))
    return made


def _safetensors(tensors: dict[str, Tensor]) -> bytes:
    specs = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    return b"".join(safetensors._pieces(specs, [t.data.data for t in tensors.values()], {}))


def _require_one_line(error: errors.VbfmtError) -> None:
    assert type(error) is not errors.VbfmtError
    assert "\n" not in str(error)


def repaired_packed(data: bytes, rng: random.Random, plain: mutate.Bytes | None = None) -> bytes:
    """One in four is damaged without regard to structure, with only front and lengths repaired."""
    if rng.random() < 0.25:
        return mutate.repaired((plain or (lambda d: mutate.scramble(d, rng)))(data))
    return mutate.packed(data, rng, plain)


TARGETS = {
    "packed": Target(run_packed, repaired_packed, mutate.seeds),
    "peft": Target(run_checkpoint, mutate.checkpoint, checkpoint_seeds),
    "safetensors": Target(run_safetensors, mutate.checkpoint, checkpoint_seeds),
}
