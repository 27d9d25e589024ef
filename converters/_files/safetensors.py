"""The safetensors format: tensors are memory-mapped, and files are written as a stream.

The safetensors package is not used: with numpy it copies every tensor that it reads, and it needs
all tensors in memory to write a file. A file is the header's length (8 bytes, little-endian), the
header in JSON, and the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from vbfmt._files import PathLike, storage
from vbfmt._format import strict_json
from vbfmt._format.container import Bytes
from vbfmt.errors import SourceError, in_file
from vbfmt.tensors import BITS, WHOLE_BYTES, Tensor, byte_length

Spec: TypeAlias = "tuple[str, str, tuple[int, ...]]"
"""Name, safetensors dtype and shape of a tensor to write."""

_LENGTH = struct.Struct("<Q")
LONGEST_NAME = 1024
"""Most characters of a tensor's name, as in a packed file."""
_LONGEST_HEADER = 100_000_000  # the limit of the safetensors package


@dataclass(frozen=True)
class SafetensorsFile:
    """A memory-mapped safetensors file.

    Attributes:
        tensors: the tensors by name, in the order of their bytes in the file.
        metadata: the header's ``__metadata__``.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read(path: PathLike) -> SafetensorsFile:
    """Map a safetensors file into memory, and check its header; no tensor is copied.

    Raises:
        SourceError: the file is not safetensors, or its header contradicts itself or the file.
        StorageError: the file cannot be read.
    """
    data = storage.read(path, mmap=True)
    with in_file(path):
        return parse(data)


def parse(data: memoryview) -> SafetensorsFile:
    """Return the tensors and metadata in the bytes of a file. Errors are those of `read`."""
    described, start = _header(data)
    metadata = described.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise SourceError("metadata does not map strings to strings", part="__metadata__")
    entries = [_entry(name, value) for name, value in described.items()]
    entries.sort(key=lambda entry: entry[3:])
    position = 0
    tensors: dict[str, Tensor] = {}
    for name, dtype, shape, begin, end in entries:
        if begin != position or end < begin or start + end > len(data):
            raise SourceError(
                "tensors overlap, leave a gap or go past the end of the file: damaged or truncated",
                part=name,
                found=f"bytes {begin} to {end}",
                expected=f"from {position}, within {len(data) - start}",
            )
        length = byte_length(dtype, shape)
        if length != end - begin:
            raise SourceError(
                f"wrong length for {dtype} {list(shape)}",
                part=name,
                found=f"{end - begin} bytes",
                expected=WHOLE_BYTES if length is None else f"{length}",
            )
        content = data[start + begin : start + end]
        tensors[name] = Tensor(dtype, shape, np.frombuffer(content, dtype=np.uint8))
        position = end
    if start + position != len(data):
        raise SourceError(
            "the file has bytes that belong to no tensor",
            part="end of the file",
            found=f"{len(data)} bytes",
            expected=start + position,
        )
    return SafetensorsFile(tensors, metadata)


def write(
    path: PathLike,
    specs: Iterable[Spec],
    contents: Iterable[Bytes],
    *,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write a stream of tensors to a new file, completely or not at all.

    Args:
        path: the file to write.
        specs: name, dtype and shape of each tensor, in order.
        contents: bytes of each tensor, little-endian and row-major, of the length that its spec
            implies.
        metadata: the header's ``__metadata__``.

    Returns:
        Number of bytes written.

    Raises:
        OutputExistsError, StorageError: as `storage.write`.
    """
    return storage.write(path, _pieces(specs, contents, metadata), overwrite=False)


def header(specs: Iterable[Spec], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the header of a file with these tensors, for writers that stream parts of tensors.

    The tensors' bytes must follow the header, in the same order and without gaps.

    Raises:
        ValueError: two tensors have the same name, or a tensor does not fill whole bytes.
    """
    return bytes(_laid_out(specs, metadata)[0])


def _laid_out(
    specs: Iterable[Spec], metadata: Mapping[str, str] | None
) -> tuple[bytearray, array[int]]:
    """Return the header of a file with these tensors, and the length of each in bytes."""
    lengths = array("Q")
    text = bytearray(_LENGTH.size) + b"{"
    names = set()
    if metadata:
        names.add("__metadata__")
        text += f'"__metadata__":{_as_json(dict(metadata))},'.encode()
    begin = 0
    for name, dtype, shape in specs:
        length = byte_length(dtype, shape)
        if length is None or name in names:
            raise ValueError(f"tensor {name!r} occurs twice, or is not a whole number of bytes")
        names.add(name)
        sizes, end = ",".join(map(str, shape)), begin + length
        text += (
            f'{_as_json(name)}:{{"dtype":"{dtype}","shape":[{sizes}],'
            f'"data_offsets":[{begin},{end}]}},'
        ).encode()
        begin = end
        lengths.append(length)
    text[-1 if names else len(text) :] = b"}"  # in place of the last comma
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    _LENGTH.pack_into(text, 0, len(text) - _LENGTH.size)
    return text, lengths


_as_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def _pieces(
    specs: Iterable[Spec], contents: Iterable[Bytes], metadata: Mapping[str, str] | None
) -> Iterator[Bytes]:
    start, lengths = _laid_out(specs, metadata)
    yield start
    del start
    for number, (length, content) in enumerate(zip(lengths, contents, strict=True)):
        if len(content) != length:
            raise ValueError(f"tensor {number}: got {len(content)} bytes, not {length}")
        yield content


def _header(data: memoryview) -> tuple[dict[str, Any], int]:
    if len(data) < _LENGTH.size:
        raise SourceError(
            "not a safetensors file, or truncated",
            found=f"{len(data)} bytes",
            expected=f"at least {_LENGTH.size}",
        )
    (length,) = _LENGTH.unpack_from(data)
    start = _LENGTH.size + length
    if length > _LONGEST_HEADER or start > len(data):
        raise SourceError(
            "not a safetensors file, or truncated",
            part="header",
            found=f"a length of {length} bytes",
            expected=f"at most {min(_LONGEST_HEADER, len(data) - _LENGTH.size)}",
        )
    try:
        header = strict_json.parse_object(bytes(data[_LENGTH.size : start]).decode(), sizes=True)
        _require_valid_names(header)
    except ValueError as error:
        raise SourceError("not a safetensors file", part="header", found=error) from None
    return header, start


def _require_valid_names(header: Mapping[str, Any]) -> None:
    """Refuse lone surrogates in names and in the metadata: JSON allows them, but UTF-8 does not.
    Refuse long names, because the time to split names at their dots grows faster than their length.

    Raises:
        ValueError: a string has a lone surrogate, or a name has more than `LONGEST_NAME`
            characters.
    """
    metadata = header.get("__metadata__")
    texts = [*metadata, *metadata.values()] if isinstance(metadata, dict) else []
    for text in (*header, *texts):
        str(text).encode()
    for name in header:
        if len(name) > LONGEST_NAME:
            raise ValueError(f"a name of {len(name)} characters")


def _entry(name: str, value: Any) -> tuple[str, str, tuple[int, ...], int, int]:
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        sizes = (*shape, begin, end)
        valid = len(value) == 3 and all(type(n) is int and 0 <= n < 1 << 64 for n in sizes)
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid or not isinstance(shape, list):
        raise SourceError("invalid description of a tensor", part=name, found=repr(value)[:80])
    if not isinstance(dtype, str) or dtype not in BITS:
        raise SourceError("unknown dtype", part=name, found=repr(dtype)[:80])
    return name, dtype, tuple(shape), begin, end
