"""Read tensors from PyTorch's file format (``.bin``, ``.pt``) without PyTorch or running code.

There are two forms: a zip archive with a pickle and a record for each storage (PyTorch 1.6 and
later), and a sequence of pickles followed by the storages. Every size is compared with the file
before it is used, and a tensor is a view of the memory-mapped file. The values are the same as with
``torch.load(weights_only=True)``, and every file that it refuses is refused here too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._files import PathLike, storage
from vbfmt.converters._files import state_dict_program, zip_records
from vbfmt.converters._files.state_dict_objects import Storage, View
from vbfmt.errors import SourceError, in_file
from vbfmt.tensors import BITS, Tensor

LONGEST_PROGRAM = 64 << 20
"""Largest size in bytes of the pickle in a file, which has the names and shapes of the tensors."""

MEMORY = 40 << 20
"""Largest memory for the objects of a pickle, in bytes. It is enough for about 25,000 tensors."""

_MOST_TIMES = 4
"""The tensors of a file may have this many times the size of the file in total, because tied
weights are stored once but have several names."""

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_VERSIONS = range(1, 11)
_LONGEST_TEXT = 256
"""Largest size in bytes of a record that describes the archive."""

_SHARDED = b"DTensor"
_MODEL = ("model", "state_dict", "model_state_dict")
"""Keys under which training loops, and accelerate after consolidation, store a model's state
dict."""

Contents = Mapping[str, NDArray[np.uint8]]
"""Key of a storage → its bytes."""


def read(path: PathLike) -> dict[str, Tensor]:
    """Read a state dict. Row-major tensors are memory-mapped; others are copied.

    Returns:
        The tensors by name.

    Raises:
        SourceError: the file is not a state dict, contains anything except tensors, or contradicts
            itself.
        StorageError: the file cannot be read.
    """
    data = storage.read(path, mmap=True)
    with in_file(path):
        return parse(data)


def parse(data: memoryview) -> dict[str, Tensor]:
    """Return the tensors in the bytes of a file, as `read`.

    Raises:
        SourceError: as `read`.
    """
    try:
        in_archive = data[: len(zip_records.BEGINS)] == zip_records.BEGINS
        state, contents = _of_archive(data) if in_archive else _of_sequence(data)
        return _tensors(state, contents, len(data))
    except SourceError:
        raise
    except ValueError as error:  # includes UnicodeDecodeError
        raise SourceError(
            "not a pickle of tensors only: refused",
            found=error,
            expected="a state dict as torch.save writes it",
            advice="if you trust it, load it with PyTorch and save it as safetensors",
        ) from None


def _of_archive(data: memoryview) -> tuple[Any, Contents]:
    """Return the object and the storages in a file of PyTorch 1.6 or later."""
    records = zip_records.read(data)
    top = next(iter(records), "").partition("/")[0] + "/"
    own = {}
    for name, (begin, end) in records.items():
        inner = name.removeprefix(top)
        # PyTorch ignores case when it looks for a record.
        if not name.startswith(top) or inner != inner.lower():
            raise ValueError(f"a record {name[:80]!r} that torch.save does not write")
        own[inner] = data[begin:end]
    if "data.pkl" not in own or "constants.pkl" in own or ".data/version" in own:
        raise ValueError("not an archive of torch.save")
    if _text(own, "byteorder", "little") != "little":
        raise ValueError("unsupported: big-endian values")
    version = _text(own, "version", "").rstrip("\n")
    if not version.isdecimal() or len(version) > 2 or int(version) not in _VERSIONS:
        raise ValueError(f"unsupported: version {version!r} of the archive")
    alignment = _text(own, ".storage_alignment", "64")
    if not (alignment.isascii() and alignment.isdecimal()):
        raise ValueError("an unreadable alignment of storages")
    _text(own, ".data/serialization_id", "")
    program = own["data.pkl"]
    if len(program) > LONGEST_PROGRAM:
        raise ValueError(f"a pickle of {len(program)} bytes, more than {LONGEST_PROGRAM}")
    storages: dict[str, Storage] = {}
    try:
        state, _ = state_dict_program.run(program, 0, MEMORY, storages, arity=4)
    except ValueError:
        if _SHARDED in bytes(program):
            raise _not_gathered() from None
        raise
    contents = {}
    for key, described in storages.items():
        content = own.get(f"data/{key}")
        if content is None or len(content) != described.size:
            found = "is missing" if content is None else f"has {len(content)} bytes"
            raise ValueError(f"storage {key[:40]!r} {found}, expected {described.size} bytes")
        contents[key] = np.frombuffer(content, np.uint8)
    return state, contents


def _not_gathered() -> SourceError:
    return SourceError(
        "sharded tensors (DTensor), of which the file holds one process's part",
        expected="whole tensors",
        advice="gather them in the training code: torch.distributed.checkpoint.state_dict."
        "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, "
        "cpu_offload=True)), and save that in one process",
    )


def _text(records: Mapping[str, memoryview], name: str, default: str) -> str:
    """Return the content of a short record, or `default` if there is no such record."""
    content = records.get(name)
    if content is None:
        return default
    if len(content) > _LONGEST_TEXT:
        raise ValueError(f"record {name!r} has {len(content)} bytes")
    return bytes(content).decode()


def _of_sequence(data: memoryview) -> tuple[Any, Contents]:
    """Return the object and the storages in a file of PyTorch before 1.6."""
    storages: dict[str, Storage] = {}
    program = data[:LONGEST_PROGRAM]
    results = []
    position = 0
    for share in (1000, 1000, 1000, 1, 4):  # magic, protocol, system, state dict, storages' keys
        result, position = state_dict_program.run(
            program, position, MEMORY // share, storages, arity=5
        )
        results.append(result)
        if results[:2] not in ([_MAGIC], [_MAGIC, _PROTOCOL]):
            raise ValueError("not a file of torch.save")
    _, _, system, state, keys = results
    if not isinstance(system, dict) or system.get("little_endian", True) is not True:
        raise ValueError("unsupported: big-endian values")
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise ValueError("an unreadable list of storages")
    if len(set(keys)) != len(keys) or set(keys) != set(storages):
        raise ValueError("storages are missing, or in the file twice")
    contents = {}
    for key in keys:
        content = data[position + 8 : position + 8 + storages[key].size]
        (elements,) = struct.unpack("<q", data[position : position + 8].tobytes().ljust(8, b"\xff"))
        if elements != storages[key].elements or len(content) != storages[key].size:
            raise ValueError(f"storage {key[:40]!r} does not have the size that it claims")
        contents[key] = np.frombuffer(content, np.uint8)
        position += 8 + len(content)
    if position != len(data):
        raise ValueError("bytes after the last storage")
    return state, contents


def _tensors(state: Any, contents: Contents, size: int) -> dict[str, Tensor]:
    """Return the tensors of a state dict in a file of `size` bytes."""
    if not isinstance(state, dict):
        raise SourceError("not a state dict", found=_kind(state), expected="tensors by name")
    state = _model_state(state)
    for name, value in state.items():
        if type(value) is not View:
            raise SourceError("not a plain tensor", part=name, found=_kind(value))
    if sum(map(_length, state.values())) > _MOST_TIMES * size:
        raise _not_stored(None, f"tensors of more than {_MOST_TIMES} times the file's size")
    copies: dict[View, NDArray[np.uint8]] = {}
    left = size
    tensors = {}
    for name, view in state.items():
        content = contents[view.storage.key]
        if _length(view) > len(content):
            raise _not_stored(name, f"{_length(view)} bytes of {len(content)} stored")
        if _is_row_major(view):
            begin = view.offset * BITS[view.storage.dtype] // 8
            flat = content[begin : begin + _length(view)]
        else:
            if view not in copies:
                left -= _length(view)
                if left < 0:
                    raise _not_stored(name, "copies of more than the file's size")
                copies[view] = _copied(view, content)
            flat = copies[view]
        if view.storage.dtype == "BOOL" and flat.size and flat.max() > 1:
            # PyTorch keeps such bytes or changes them to 1, depending on how it copies them.
            raise SourceError(
                "not a boolean", part=name, found=f"byte {flat.max()}", expected="0 or 1"
            )
        tensors[name] = Tensor(view.storage.dtype, view.shape, flat)
    return tensors


def _model_state(state: dict[Any, Any]) -> dict[Any, Any]:
    """Return the model's state dict if a training loop has saved it under a key, else `state`."""
    inner = [name for name in _MODEL if type(state.get(name)) is dict]
    return state[inner[0]] if len(inner) == 1 else state


def _length(view: View) -> int:
    """Return the number of a tensor's bytes, or 2⁶⁶ if it is greater."""
    length = BITS[view.storage.dtype] // 8
    if 0 in view.shape:
        return 0
    for count in view.shape:
        length = min(length * count, 1 << 66)
    return length


def _is_row_major(view: View) -> bool:
    step = 1
    for count, stride in zip(reversed(view.shape), reversed(view.stride), strict=True):
        if count != 1 and stride != step:
            return _length(view) == 0
        step *= count
    return True


def _copied(view: View, content: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the bytes of a tensor that is not row-major, as a row-major copy."""
    size = BITS[view.storage.dtype] // 8
    elements = content.view(f"u{size}")[view.offset :]
    strides = [stride * size for stride in view.stride]
    placed = np.lib.stride_tricks.as_strided(elements, view.shape, strides, writeable=False)
    return np.ascontiguousarray(placed).reshape(-1).view(np.uint8)


def _not_stored(name: str | None, found: str) -> SourceError:
    return SourceError(
        "tensors have more elements than the file holds",
        part=name,
        found=found,
        expected="every element stored",
    )


def _kind(value: object) -> str:
    kinds: Iterator[str] = (
        word
        for kind, word in ((View, "a tensor"), (dict, "a dict"), (Storage, "a storage"))
        if isinstance(value, kind)
    )
    return next(kinds, type(value).__name__)
