"""Targets of the fuzzer: functions that read hostile input and check the result."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tests.fuzz import bases, checkpoint, commands, contents, gguf, packed, pickles, unilora
from tests.fuzz.refusals import kind_of
from vbfmt import dumps, errors, loads
from vbfmt._format import strict_json
from vbfmt.converters import peft
from vbfmt.converters._files import pickle, safetensors
from vbfmt.converters.peft import config as peft_config
from vbfmt.tensors import TORCH

MOST_ELEMENTS = 1 << 20
"""Factors with more elements are not composed, because they may be much larger than the file."""


class Target(NamedTuple):
    """A function that reads hostile input, and how to make inputs for it.

    Attributes:
        run: reads any bytes and returns the outcome; raises only if the library has a bug.
        damaged: changes an input, keeping its lengths and checksums right.
        seeds: makes the initial inputs.
        address_space: bytes that one input may add to the address space. Threads reserve much of it
            and use little.
    """

    run: Callable[[bytes], str]
    damaged: Callable[..., bytes]
    seeds: Callable[[], list[bytes]]
    address_space: int = 64 << 20


def run_packed(data: bytes) -> str:
    """Run `loads`. Accepted files must be canonical, and safe to use without further checks."""
    try:
        adapter = loads(data, banks=packed.BANKS)
    except errors.VbfmtError as error:
        return kind_of(error)
    if adapter.N * adapter.b <= MOST_ELEMENTS:
        for _, a, b in adapter.iter_factors():
            assert np.isfinite(a).all()
            assert np.isfinite(b).all()
    assert loads(dumps(adapter)) == adapter
    if packed.is_thin(data):
        again = loads(dumps(adapter, bank="external"), banks=packed.BANKS)
        assert again == adapter
        assert again.bank is adapter.bank
        return "accepted without its bank"
    return "accepted"


def run_checkpoint(data: bytes) -> str:
    """Run the PEFT reader, from config text and safetensors bytes to an adapter."""
    text, weights = checkpoint.split(data)
    config = None
    if text:
        try:
            config = strict_json.parse_object(text.decode(errors="replace"))
        except ValueError:
            return "no config"
    try:
        tensors = safetensors.parse(memoryview(weights)).tensors
        if config is not None:
            peft_config.require_type(config, "VBLORA", "adapter_config.json")
        adapter = peft.from_tensors(tensors, config)
    except errors.VbfmtError as error:
        return kind_of(error)
    assert loads(dumps(adapter)) == adapter
    return "accepted"


def run_safetensors(data: bytes) -> str:
    """Read a safetensors header. Tensors of an accepted file must cover it without gap or
    overlap."""
    _, weights = checkpoint.split(data)
    try:
        found = safetensors.parse(memoryview(weights))
    except errors.VbfmtError as error:
        return kind_of(error)
    (length,) = struct.unpack_from("<Q", weights)
    assert 8 + length + sum(t.data.size for t in found.tensors.values()) == len(weights)
    return "accepted"


def run_pickle(data: bytes) -> str:
    """Read a PyTorch file. An accepted file must have the values that PyTorch reads."""
    import torch

    try:
        found = pickle.parse(memoryview(data))
    except errors.VbfmtError as error:
        return kind_of(error)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    assert list(found) == list(expected)
    for name, tensor in found.items():
        other = expected[name].detach()
        assert TORCH[str(other.dtype).removeprefix("torch.")] == tensor.dtype
        assert tuple(other.shape) == tensor.shape
        # `contiguous` keeps any stride of a dimension with one element.
        plain = other.contiguous().as_strided((other.numel(),), (1,))
        plain = plain.view(torch.uint8).numpy()
        assert np.array_equal(plain, tensor.data)
    return "accepted"


TARGETS = {
    "packed": Target(run_packed, packed.damaged, packed.seeds),
    "peft": Target(run_checkpoint, checkpoint.damaged, checkpoint.seeds),
    "safetensors": Target(run_safetensors, checkpoint.damaged, checkpoint.seeds),
    "pickle": Target(run_pickle, pickles.damaged, pickles.seeds),
    "base": Target(bases.run, contents.damaged, bases.seeds, address_space=1 << 30),
    "gguf": Target(gguf.run, gguf.damaged, gguf.seeds),
    "unilora": Target(unilora.run, contents.damaged, unilora.seeds),
    "commands": Target(commands.run, commands.damaged, commands.seeds, address_space=1 << 30),
}
