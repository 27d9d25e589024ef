"""Damaged PEFT checkpoints with corrected lengths and offsets."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

import numpy as np

from tests.fuzz import trees
from tests.fuzz.content import LONGEST, Plain, change_numbers, length_of, scramble, stretched
from vbfmt.converters._files import safetensors
from vbfmt.tensors import Tensor


def seeds() -> list[bytes]:
    """Return PEFT checkpoints in both forms, with k from 1 to 10, with and without other tensors,
    with logits of −∞, and with weights whose sum exceeds 1 by rounding."""
    rng = np.random.default_rng(0)
    made = []
    for k, h, dtype in ((1, 3, "f4"), (2, 5, "f4"), (3, 6, "f8"), (3, 4, "f2"), (10, 12, "f4")):
        bank = rng.standard_normal((h, 2)).astype(dtype)
        logits = {
            f"base_model.model.m{i}.vblora_logits_{f}": rng.standard_normal((2, 2, h)).astype(dtype)
            for i in range(2)
            for f in "AB"
        }
        if k > 8:
            for values in logits.values():
                values[0, :, 4:] = -np.inf
        top = {}
        for key, values in logits.items():
            order = np.argsort(-values, axis=2)[:, :, :k]
            shares = np.exp(np.take_along_axis(values, order, 2).astype("f8"))
            shares /= shares.sum(axis=2, keepdims=True)
            top[f"{key}_topk_indices"] = order.astype("u1")
            top[f"{key}_topk_weights"] = shares[:, :, : k - 1].astype(dtype)
            if dtype == "f2":
                top[f"{key}_topk_weights"][0, 0] = 0.5, 0.50048828125
        config = {"peft_type": "VBLORA", "r": 2, "topk": k, "num_vectors": h, "vector_length": 2}
        config |= {"target_modules": ["m0", "m1"], "base_model_name_or_path": "x", "bias": "none"}
        extra = {"base_model.model.classifier.weight": np.ones((2, 2), "f4")}
        for form in (logits, top, {**top, **extra}):
            arrays = {"base_model.vblora_vector_bank": bank, **form}
            tensors = {name: Tensor.of(array) for name, array in arrays.items()}
            made.append(joined(json.dumps(config).encode(), _safetensors(tensors)))
    return made


def damaged(data: bytes, rng: random.Random, plain: Plain | None = None) -> bytes:
    """Return a PEFT checkpoint (see `joined`) with one to four changes."""
    plain = plain or (lambda chunk: scramble(chunk, rng))
    try:
        config_text, weights = split(data)
        (length,) = struct.unpack_from("<Q", weights)
        header = json.loads(weights[8 : 8 + length])
        contents = {
            name: weights[8 + length :][slice(*entry["data_offsets"])]
            for name, entry in header.items()
            if name != "__metadata__"
        }
        config = json.loads(config_text) if config_text else {}
    except (ValueError, struct.error, TypeError, KeyError, AttributeError, RecursionError):
        return plain(data)[:LONGEST]
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        kind = rng.random()
        if kind < 0.25:
            trees.change(config, rng)
        elif kind < 0.6:
            trees.change(header, rng)
        elif kind < 0.7 and contents:
            _rename(header, contents, rng)
        elif contents:
            name = rng.choice(sorted(contents))
            contents[name] = change_numbers(contents[name], rng)
    body = _placed(header, contents, rng) if isinstance(header, dict) else b""
    text = json.dumps(header, default=repr).encode()
    if rng.random() < 0.1:
        text = plain(text)
    if rng.random() < 0.1:
        config_text = plain(config_text)
    else:
        config_text = json.dumps(config, default=repr).encode() if config_text else b""
    return joined(config_text, struct.pack("<Q", len(text)) + text + body)[:LONGEST]


def joined(config: bytes, weights: bytes) -> bytes:
    """Return both files of a checkpoint as one input: length of the config, config, weights."""
    return struct.pack("<I", len(config)) + config + weights


def split(data: bytes) -> tuple[bytes, bytes]:
    """Return the two files of an input. A length beyond the end means that all of it is the
    config."""
    (length,) = struct.unpack_from("<I", data.ljust(4, b"\0"))
    return data[4 : 4 + length], data[4 + length :]


def _rename(header: dict[str, Any], contents: dict[str, bytes], rng: random.Random) -> None:
    """Rename a tensor to a name made of parts of other names."""
    name = rng.choice(sorted(contents))
    other = rng.choice(sorted(contents))
    cut = rng.randrange(len(name) + 1)
    new = rng.choice(
        (name[:cut] + other[cut:], other.replace("_A", "_B"), f"{name}.default", other)
    )
    header[new] = header.pop(name, None)
    contents[new] = contents.pop(name)


def _placed(header: dict[str, Any], contents: dict[str, bytes], rng: random.Random) -> bytes:
    """Return the data, usually with correct offsets, and with the lengths that the shapes
    require."""
    body = b""
    keep = rng.random() < 0.1
    for name, entry in header.items():
        if name == "__metadata__" or not isinstance(entry, dict):
            continue
        content = contents.get(name, b"")
        try:
            length = length_of(entry["dtype"], entry["shape"])
            if 0 <= length <= LONGEST and rng.random() < 0.9:
                content = stretched(content, length, rng)
        except (TypeError, KeyError):
            pass
        if not keep:
            entry["data_offsets"] = [len(body), len(body) + len(content)]
        body += content
    return body


def _safetensors(tensors: dict[str, Tensor]) -> bytes:
    specs = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    return b"".join(safetensors._pieces(specs, [t.data.data for t in tensors.values()], {}))
