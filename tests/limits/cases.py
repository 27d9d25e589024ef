"""Small hostile inputs, and the commands that are run on each.

Every builder writes files into a folder, where the commands are run. Inputs have less than 1 MB,
except those in `AT_THE_LIMITS`.
"""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from spec.corpus.valid import adapter as tiny_adapter
from tests import forge
from tests.converters.merge.folders import adapter_of, save_base, tensor_of
from tests.fuzz import unilora
from tests.fuzz.folders import split
from tests.tensor_files import write_tensors
from vbfmt import Adapter, Module, Rows, Tensor, dumps, save

Case = tuple[Callable[[Path], None], tuple[str, ...]]

_READ = (
    "verify a.vblora",
    "inspect a.vblora --modules",
    "inspect a.vblora --json",
    "diff a.vblora a.vblora",
    "unpack a.vblora -o out1",
    "expand a.vblora -o out2",
    "plot a.vblora -o out3.html",
    "bank split a.vblora -o out4.vblora",
    "store add out5 a.vblora",
)
_NOT_EXPANDED = tuple(line for line in _READ if not line.startswith(("unpack", "expand", "plot")))


def _many(names: list[str], h: int = 2) -> Adapter:
    """Return an adapter for modules with one input and one output each."""
    modules = [Module(name, 1, 1, 1) for name in sorted(names, key=str.encode)]
    dtype = "u1" if h <= 256 else "<u2"
    rows = Rows(np.zeros((2, 1), dtype), np.empty((2, 0), "<f4"))
    return Adapter.from_rows(np.ones((h, 1), "f4"), dict.fromkeys(modules, rows))


def kinds(folder: Path) -> None:
    save(_many([f"m.k{n}" for n in range(15_000)], h=65_536), folder / "a.vblora")


def long_names(folder: Path) -> None:
    save(_many(["a." * 500 + f"{n:04}" for n in range(800)]), folder / "a.vblora")


def short_names(folder: Path) -> None:
    save(_many([f"{n:x}" for n in range(40_000)]), folder / "a.vblora")


def header(item: bytes) -> Callable[[Path], None]:
    """Return a function that writes a file with a key of a later version, whose value has as many
    small items as fit."""

    def make(folder: Path) -> None:
        count = 900_000 // len(item)
        plain = forge.header_of(dumps(tiny_adapter()))
        many = b"\xa1z\xdd" + count.to_bytes(4, "big") + item * count
        data = forge.with_header_bytes(
            dumps(tiny_adapter()), bytes([plain[0] + 1]) + plain[1:] + many
        )
        (folder / "a.vblora").write_bytes(forge.with_preamble(data, minor=1))

    return make


def table(item: bytes) -> Callable[[Path], None]:
    """Return a function that writes a file whose table of modules has as many of these rows as
    fit."""

    def make(folder: Path) -> None:
        plain = forge.header_of(dumps(tiny_adapter()))
        begin = plain.index(b"\xa7modules") + len(b"\xa7modules")
        end = plain.index(b"\xa7tensors")
        rows = b"\xdd" + (900_000 // len(item)).to_bytes(4, "big") + item * (900_000 // len(item))
        data = forge.with_header_bytes(dumps(tiny_adapter()), plain[:begin] + rows + plain[end:])
        (folder / "a.vblora").write_bytes(data)

    return make


def further_keys(folder: Path) -> None:
    """Write a file with as many keys of a later version as fit."""
    plain = forge.header_of(dumps(tiny_adapter()))
    keys = b"".join(b"\xa6z%05x\xc0" % n for n in range(110_000))
    count = b"\xdf" + (11 + 110_000).to_bytes(4, "big")
    data = forge.with_header_bytes(dumps(tiny_adapter()), count + plain[1:] + keys)
    (folder / "a.vblora").write_bytes(forge.with_preamble(data, minor=1))


def promise(folder: Path) -> None:
    save(tiny_adapter(Module("m", 1 << 20, 1 << 20, 64), h=1, b=1 << 14, k=1), folder / "a.vblora")


def _checkpoint(folder: Path, arrays: dict[str, Any], config: dict[str, Any] | bytes) -> None:
    (folder / "src").mkdir()
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    (folder / "src" / "adapter_config.json").write_bytes(text)
    tensors = {name: Tensor.of(array) for name, array in arrays.items()}
    write_tensors(folder / "src" / "adapter_model.safetensors", tensors)


_VBLORA = {"peft_type": "VBLORA", "r": 1, "topk": 1, "num_vectors": 1, "vector_length": 1}
_BANK = {"base_model.vblora_vector_bank": np.ones((1, 1), "f4")}


def _logits(names: list[str]) -> dict[str, Any]:
    return _BANK | {
        f"base_model.model.{name}.vblora_logits_{f}": np.ones((1, 1, 1), "f4")
        for name in names
        for f in "AB"
    }


def dotted_tensors(folder: Path) -> None:
    _checkpoint(folder, _logits(["a." * 450 + f"{n:04}" for n in range(400)]), _VBLORA)


def untied(folder: Path) -> None:
    _checkpoint(folder, _logits([f"l.{n}.q" for n in range(4000)]), _VBLORA)


def duplicate_keys(folder: Path) -> None:
    text = b"{" + b", ".join(b'"k%d": 1' % (n // 2) for n in range(80_000)) + b"}"
    _checkpoint(folder, _BANK, text)


def near_keys(folder: Path) -> None:
    names = {"x" * 60 + f"ab{n:05}": np.ones(0, "f4") for n in range(6000)}
    _checkpoint(folder, _BANK | names, _VBLORA)


def long_integers(folder: Path) -> None:
    _checkpoint(folder, _BANK, b'{"a": [' + b",".join([b"9" * 1000] * 900) + b"]}")


def nested(folder: Path) -> None:
    _checkpoint(folder, _BANK, b'{"a": ' + b"[" * 400_000 + b"]" * 400_000 + b"}")


def _pickled(folder: Path, state: dict[str, Any], **options: Any) -> None:
    import torch

    torch.save(state, folder / "x.bin", **options)


def pickle_of_many(folder: Path) -> None:
    import torch

    one = torch.ones(1)
    _pickled(folder, {f"{n}": one for n in range(12_000)})


def pickle_in_a_row(folder: Path) -> None:
    import torch

    one = torch.ones(1)
    state = {f"{n}": one for n in range(12_000)}
    _pickled(folder, state, _use_new_zipfile_serialization=False)


def pickle_of_marks(folder: Path) -> None:
    with zipfile.ZipFile(folder / "x.bin", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + b"}" * 900_000 + b".")
        archive.writestr("x/version", b"3\n")


def pickle_of_memo(folder: Path) -> None:
    with zipfile.ZipFile(folder / "x.bin", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02N" + b"r\xff\xff\xff\xff" * 100 + b".")
        archive.writestr("x/version", b"3\n")


def records(folder: Path) -> None:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")
        for n in range(9000):
            archive.writestr(f"x/{n}", b"")
    (folder / "x.bin").write_bytes(file.getvalue())


def _base(folder: Path, names: list[str], config: dict[str, Any] | None = None) -> None:
    save(adapter_of({"l.q": (2, 2)}, b=2), folder / "a.vblora")
    one = tensor_of(np.ones((2, 2), "f4"))
    save_base(folder / "base", dict.fromkeys(names, one), config=config)


def near_base(folder: Path) -> None:
    _base(folder, ["l." + "x" * 90 + f"{n:05}.weight" for n in range(5000)])


def dotted_base(folder: Path) -> None:
    _base(folder, ["a." * 450 + f"{n:04}" for n in range(800)])


def one_shape(folder: Path) -> None:
    """Write weights that could each be an embedding or the head tied to it."""
    names = [f"m{n}" for n in range(4000)]
    save(adapter_of(dict.fromkeys(names, (2, 2)), b=2), folder / "a.vblora")
    weights = {f"{name}.weight": tensor_of(np.full((2, 2), n)) for n, name in enumerate(names)}
    save_base(folder / "base", weights, config={"model_type": "llama", "vocab_size": 2})


def index(folder: Path) -> None:
    _base(folder, ["l.q.weight"])
    (folder / "base" / "model.safetensors").unlink()
    places = {f"t{n}": f"model-{n:05}.safetensors" for n in range(18_000)}
    text = json.dumps({"weight_map": places})
    (folder / "base" / "model.safetensors.index.json").write_text(text)


def many_files(folder: Path) -> None:
    _base(folder, ["l.q.weight"])
    for n in range(5000):
        (folder / "base" / f"{n}").write_bytes(b"")


def wide_config(folder: Path) -> None:
    _base(folder, ["l.q.weight"], {f"k{n}": n for n in range(40_000)})


_LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 8,
}


def layers(count: int) -> Callable[[Path], None]:
    """Return a function that writes a base's config with this number of layers."""

    def make(folder: Path) -> None:
        for name, content in split(unilora.seeds()[1]).items():
            path = folder / "src" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        config = json.dumps(_LLAMA | {"num_hidden_layers": count})
        (folder / "src" / "base" / "config.json").write_text(config)
        (folder / "base").mkdir()
        (folder / "base" / "config.json").write_text(config)
        save(adapter_of({"model.layers.0.self_attn.q_proj": (8, 8)}, b=2), folder / "a.vblora")

    return make


def pattern(text: str) -> Callable[[Path], None]:
    """Return a function that writes a config with a regular expression as `target_modules`."""

    def make(folder: Path) -> None:
        layers(40)(folder)
        file = folder / "src" / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": text}))

    return make


def _gguf(*entries: bytes, tensors: bytes = b"", count: int = 0) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        save(adapter_of({"model.layers.0.self_attn.q_proj": (8, 8)}, b=2), folder / "a.vblora")
        named = (_text(b"x%d" % n) + entry for n, entry in enumerate(entries))
        begin = struct.pack("<4sIQQ", b"GGUF", 3, count, len(entries))
        (folder / "b.gguf").write_bytes(begin + b"".join(named) + tensors)

    return make


def _text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


gguf_strings = _gguf(struct.pack("<IIQ", 9, 8, 100_000) + struct.pack("<Q", 0) * 100_000)
gguf_arrays = _gguf(struct.pack("<IIQ", 9, 9, 60_000) + struct.pack("<IQ", 0, 0) * 60_000)
gguf_entries = _gguf(*[struct.pack("<IB", 7, 1)] * 50_000)
gguf_tensors = _gguf(
    tensors=b"".join(_text(b"%05d" % n) + struct.pack("<IIQ", 0, 0, 0) for n in range(30_000)),
    count=30_000,
)


def gguf_layers(count: int) -> Callable[[Path], None]:
    """Return a function that writes a GGUF base that claims this number of layers."""

    def make(folder: Path) -> None:
        gguf_strings(folder)
        body = struct.pack("<4sIQQ", b"GGUF", 3, 0, 3)
        body += _text(b"general.architecture") + struct.pack("<I", 8) + _text(b"llama")
        body += _text(b"llama.block_count") + struct.pack("<II", 4, count)
        body += _text(b"llama.attention.head_count") + struct.pack("<II", 4, 4)
        (folder / "b.gguf").write_bytes(body)

    return make


def header_at_the_limit(folder: Path) -> None:
    """Write a header with 16 MiB of nested lists, under a key of a later version."""
    plain = forge.header_of(dumps(tiny_adapter()))
    count = ((16 << 20) - len(plain) - 7) // 2
    header = bytes([plain[0] + 1]) + plain[1:] + b"\xa1z\xdd" + count.to_bytes(4, "big")
    data = forge.with_header_bytes(dumps(tiny_adapter()), header + b"\x91\x90" * count)
    (folder / "a.vblora").write_bytes(forge.with_preamble(data, minor=1))


def table_at_the_limit(folder: Path) -> None:
    """Write a table of nearly 16 MiB with rows of three bytes, a third of them lists."""
    plain = forge.header_of(dumps(tiny_adapter()))
    begin = plain.index(b"\xa7modules") + len(b"\xa7modules")
    end = plain.index(b"\xa7tensors")
    count = ((16 << 20) - len(plain)) // 3 - 3
    rows = b"\xdd" + count.to_bytes(4, "big") + b"\x92\x01\x02" * count
    data = forge.with_header_bytes(dumps(tiny_adapter()), plain[:begin] + rows + plain[end:])
    (folder / "a.vblora").write_bytes(data)


def names_at_the_limit(folder: Path) -> None:
    save(_many([f"{n:x}" for n in range(850_000)]), folder / "a.vblora")


_PACK = ("pack src -o out.vblora", "verify a.vblora --against src")
_PICKLE = ("pack x.bin -o out.vblora --topk 1",)
_MERGE = ("merge a.vblora --base base -o out",)
_GGUF = ("expand a.vblora -o out.gguf --base b.gguf",)
_LAYERS = (
    "pack src -o out.vblora --base src/base",
    "estimate --base base",
    "expand a.vblora -o out.gguf --base base",
)

CASES: dict[str, Case] = {
    "15,000 kinds of modules, h = 65,536": (kinds, _READ),
    "800 dotted names of 1,000 bytes": (long_names, _READ),
    "40,000 short names": (short_names, _READ),
    "header of 900,000 empty maps": (header(b"\x80"), _NOT_EXPANDED),
    "header of 900,000 small integers": (header(b"\x01"), _NOT_EXPANDED),
    "header of 450,000 lists of a list": (header(b"\x91\x90"), _NOT_EXPANDED),
    "table of 900,000 empty rows": (table(b"\x90"), _NOT_EXPANDED[:4]),
    "table of 900,000 numbers": (table(b"\x01"), _NOT_EXPANDED[:4]),
    "table of 225,000 texts": (table(b"\xa3abc"), _NOT_EXPANDED[:4]),
    "110,000 further keys in a header": (further_keys, _NOT_EXPANDED),
    "factors of 512 MB promised": (promise, _NOT_EXPANDED),
    "800 dotted tensors of 900 bytes": (dotted_tensors, _PACK[:1]),
    "4,000 untied modules": (untied, _PACK[:1]),
    "80,000 keys twice in the config": (duplicate_keys, _PACK[:1]),
    "900 integers of 1,000 digits": (long_integers, _PACK[:1]),
    "400,000 levels of JSON": (nested, _PACK[:1]),
    "6,000 names that are nearly one": (near_keys, _PACK[:1]),
    "pickle of 12,000 tensors": (pickle_of_many, _PICKLE),
    "the same before PyTorch 1.6": (pickle_in_a_row, _PICKLE),
    "pickle of 900,000 dicts": (pickle_of_marks, _PICKLE),
    "pickle with memo 4,294,967,295": (pickle_of_memo, _PICKLE),
    "archive of 9,000 records": (records, _PICKLE),
    "base of 5,000 near names": (near_base, _MERGE),
    "base of 800 dotted names": (dotted_base, _MERGE),
    "4,000 modules of one shape": (one_shape, _MERGE),
    "index of 18,000 shards": (index, _MERGE),
    "base of 5,000 files": (many_files, _MERGE),
    "base's config of 40,000 keys": (wide_config, (*_MERGE, "estimate --base base")),
    "base of 20,000 layers": (layers(20_000), _LAYERS),
    "hostile regular expression": (pattern(r"(.*.*)*(.*.*)*(.*.*)*x"), _LAYERS[:1]),
    "one that is slow for every name": (pattern(r".*(.|.|.)*y|.*" + "q_proj"), _LAYERS[:1]),
    "GGUF: array of 100,000 texts": (gguf_strings, _GGUF),
    "GGUF: array of 60,000 arrays": (gguf_arrays, _GGUF),
    "GGUF: 50,000 entries": (gguf_entries, _GGUF),
    "GGUF: 30,000 tensors": (gguf_tensors, _GGUF),
    "GGUF: 65,536 blocks": (gguf_layers(65_536), _GGUF),
}
"""Name → builder of inputs below 1 MB, and the commands that are run on them."""

AT_THE_LIMITS: dict[str, Case] = {
    "850,000 names in 16 MiB": (names_at_the_limit, _NOT_EXPANDED),
    "16 MiB of lists of a list": (header_at_the_limit, _NOT_EXPANDED),
    "16 MiB of short rows": (table_at_the_limit, ("verify a.vblora", "diff a.vblora a.vblora")),
    "base of 1,024 layers": (layers(1024), _LAYERS),
    "GGUF: 1,024 blocks": (gguf_layers(1024), _GGUF),
}
"""Name → builder of the largest inputs that the limits in SECURITY.md allow, and the commands."""
