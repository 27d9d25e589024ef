"""Base folders of a merge: config, index, shards, links."""

from __future__ import annotations

import io
import os

import numpy as np

from tests.converters.merge import folders as models
from tests.fuzz import folders
from tests.fuzz.refusals import kind_of
from vbfmt import Tensor, dumps, errors
from vbfmt.converters.operations.merge import merge
from vbfmt.tensors import numpy_dtype

_SHAPES = {"model.layers.0.q": (8, 12), "model.layers.1.q": (8, 12)}
_MERGED = models.adapter_of(_SHAPES)

ADAPTER = dumps(_MERGED)
"""A packed file that fits the bases."""


def seeds() -> list[bytes]:
    """Bases in one file and in two, of three dtypes, with a pickle, with other files."""
    made = []
    for dtype, shards, side in (
        ("F32", 1, {}),
        ("F32", 2, {"tokenizer.json": b"{}", "d/x": b"1"}),
        ("BF16", 2, {"generation_config.json": b'{"a": 1}'}),
        ("F16", 1, {"modeling.py": b"", f"y{folders.LINK}": b"config.json"}),
    ):
        with folders.written({}) as folder:
            weights = models.weights_of(_SHAPES, dtype=dtype)
            models.save_base(folder / "base", weights, shards=shards)
            files = {p.name: p.read_bytes() for p in sorted((folder / "base").iterdir())}
        made.append(folders.joined({**files, **side}))
    try:
        import torch
    except ImportError:
        return made
    state = {
        name: torch.from_numpy(tensor.numpy().copy())
        for name, tensor in models.weights_of(_SHAPES).items()
    }
    file = io.BytesIO()
    torch.save(state, file)
    config = b'{"model_type": "llama"}'
    made.append(folders.joined({"config.json": config, "pytorch_model.bin": file.getvalue()}))
    return made


def run(data: bytes) -> str:
    """Merge into a base. The output must have the base's tensors, and W + ΔW for the modules; a
    refused merge must leave nothing."""
    with folders.written(folders.split(data)) as folder:
        before = sorted(os.listdir(folder))
        out = folder.with_name(f"{folder.name}-out")
        try:
            with folders.beside(out):
                plan = merge(_MERGED, out, base=folder)
                _require_merged(folder, out)
                return "accepted with notices" if plan.notices else "accepted"
        except errors.VbfmtError as error:
            refused = kind_of(error)
        assert not os.path.lexists(out)
        assert sorted(os.listdir(folder)) == before
        return refused


def _require_merged(base: os.PathLike[str], out: os.PathLike[str]) -> None:
    """Compare the files of the output with those of the base."""
    changed = 0
    for name in sorted(os.listdir(out)):
        if not name.endswith(".safetensors"):
            continue
        source = _tensors(os.path.join(base, name))
        for tensor, found in _tensors(os.path.join(out, name)).items():
            if source is None:  # from a pickle
                continue
            given = source[tensor]
            assert (found.dtype, found.shape) == (given.dtype, given.shape)
            if not np.array_equal(found.data, given.data):
                changed += 1
                _require_sum(tensor, given, found)


def _tensors(path: str) -> dict[str, Tensor] | None:
    from vbfmt.converters._files import safetensors

    return safetensors.read(path).tensors if os.path.exists(path) else None


def _require_sum(name: str, given: Tensor, found: Tensor) -> None:
    """Check that each element is the one nearest to W + ΔW, or a neighbour of it."""
    module = next(m for m in _MERGED if name.endswith(f"{m.name}.weight"))
    a, b = (factor.astype("f8") for factor in _MERGED.factors(module.name))
    delta = b @ a if given.shape == (module.out_features, module.in_features) else (b @ a).T
    with np.errstate(invalid="ignore"):  # signalling NaN
        exact = given.numpy().astype("f8") + delta
        got = found.numpy().astype("f8")
    kind = numpy_dtype(found.dtype)
    bits = {"F32": 23, "F16": 10, "BF16": 7}.get(found.dtype, 52)
    near = np.isfinite(exact) & np.isfinite(got)
    scale = np.maximum(np.abs(exact), 2.0**-14)
    apart = np.abs(got[near] - exact[near])
    assert (apart <= (scale * 2.0**-bits)[near]).all(), kind
