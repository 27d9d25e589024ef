"""Uni-LoRA folders: config, θ, indices or a seed, and the base's config."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fuzz import folders
from tests.fuzz.refusals import kind_of
from vbfmt import Tensor, dumps, errors, loads
from vbfmt.converters._files import safetensors
from vbfmt.converters.peft import skeleton

_CONFIG = {
    "peft_type": "UNILORA",
    "r": 2,
    "theta_d_length": 20,
    "proj_seed": 7,
    "target_modules": ["q_proj", "v_proj"],
    "base_model_name_or_path": "x",
    "bias": "none",
    "task_type": "CAUSAL_LM",
    "fan_in_fan_out": False,
    "modules_to_save": None,
}
_BASE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 8,
}


def seeds() -> list[bytes]:
    """Return checkpoints with indices, with a seed and a base, and with only a seed."""
    pytest.importorskip("peft", minversion="0.20")
    rng = np.random.default_rng(0)
    theta = {"base_model.model.unilora_theta_d": rng.standard_normal(20).astype("f4")}
    stored = dict(theta)
    for module in ("m0", "m1"):
        for factor, shape in (("A", (2, 4)), ("B", (6, 2))):
            key = f"base_model.model.{module}.unilora"
            stored[f"{key}_indices_{factor}"] = rng.integers(20, size=shape)
            stored[f"{key}_scales_{factor}"] = np.full(shape, 0.5, "f4")
    config = {"adapter_config.json": json.dumps(_CONFIG).encode()}
    base = {"base/config.json": json.dumps(_BASE).encode()}
    return [
        folders.joined({**config, "adapter_model.safetensors": _file(stored)}),
        folders.joined({**config, **base, "adapter_model.safetensors": _file(theta)}),
        folders.joined({**config, "adapter_model.safetensors": _file(theta)}),
    ]


def run(data: bytes) -> str:
    """Run the reader. An accepted checkpoint must give the same adapter each time, and one that can
    be packed."""
    from vbfmt.converters import read

    files = folders.split(data)
    with folders.written(files) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of PEFT and transformers
        base = folder / "base"
        at = base if base.is_dir() else None
        if at and _has_many_layers(at):
            return "many layers"
        try:
            with _built_once(files):
                adapter = read(folder, base=at)
                text = dumps(adapter)
                again = read(folder, base=at)
        except errors.VbfmtError as error:
            return kind_of(error)
        assert dumps(again) == text
        assert loads(text) == adapter
        return "accepted with a base" if at else "accepted"


@contextlib.contextmanager
def _built_once(files: folders.Files) -> Iterator[None]:
    """Within the block, build a base for the same two configs only once, because it takes most of
    the time. One small base in eight is built every time, and must have the same modules every
    time."""
    configs = [files.get(name, b"") for name in ("adapter_config.json", "base/config.json")]
    key = hashlib.sha256(b"\0".join(configs)).digest()
    build = skeleton.shapes_in_order

    def shapes_in_order(config: Any, base: Any) -> dict[str, tuple[int, int]]:
        if key not in _built:
            _built[key] = build(config, base)
            if len(_built) > _MOST_BUILT:
                del _built[next(iter(_built))]
        return _built[key]

    with pytest.MonkeyPatch.context() as patch:
        again = key[0] % 8 == 0 and b'"num_hidden_layers": 1,' in configs[1]
        if not again and not any(name.endswith(folders.LINK) for name in files):
            patch.setattr(skeleton, "shapes_in_order", shapes_in_order)
        yield


_built: dict[bytes, dict[str, tuple[int, int]]] = {}
_MOST_BUILT = 1000


def _has_many_layers(base: Path) -> bool:
    """Return whether PEFT and transformers take more than a second to build the base, at 2 ms per
    layer."""
    file = base / "config.json"
    try:
        if not file.is_file():  # a device may be endless
            return False
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    counts = config.values() if isinstance(config, dict) else ()
    return any(type(count) is int and 64 < count <= 1024 for count in counts)


def _file(arrays: dict[str, np.ndarray]) -> bytes:  # type: ignore[type-arg]
    tensors = {name: Tensor.of(array) for name, array in arrays.items()}
    specs = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    return b"".join(
        bytes(piece)
        for piece in safetensors._pieces(specs, [t.data.data for t in tensors.values()], {})
    )
