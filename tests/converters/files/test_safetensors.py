"""The safetensors container, compared with the safetensors package."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import names, tensors
from vbfmt import errors
from vbfmt.converters._files import safetensors as ours

safetensors = pytest.importorskip("safetensors")
pytest.importorskip("safetensors.numpy")


def packed(header, data=b"") -> memoryview:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return memoryview(struct.pack("<Q", len(text)) + text + data)


def test_the_package_reads_what_we_write(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "b": rng.standard_normal((3, 4)),
        "a": rng.integers(0, 9, 5).astype("u1"),
        "ü": np.zeros((0, 2), "f4"),
    }
    path = tmp_path / "x.safetensors"
    specs = [
        (name, {"f8": "F64", "u1": "U8", "f4": "F32"}[a.dtype.str[1:]], a.shape)
        for name, a in arrays.items()
    ]
    ours.write(path, specs, (a.tobytes() for a in arrays.values()), metadata={"format": "pt"})
    found = safetensors.numpy.load_file(path)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}
    assert path.stat().st_size % 8 == 5  # the data begins at a multiple of 8 and ends with 5 bytes


def test_we_read_what_the_package_writes(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"b": rng.standard_normal((3, 4), dtype="f4"), "a": np.arange(5), "s": np.array(True)}
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"who": "them"})
    found = ours.read(path)
    assert found.metadata == {"who": "them"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.tensors[name].numpy(), array)


@given(st.dictionaries(names().filter(lambda n: n != "__metadata__"), tensors(), max_size=4))
def test_read_after_write_is_the_same(found):
    specs = [(name, tensor.dtype, tensor.shape) for name, tensor in found.items()]
    pieces = ours._pieces(specs, (tensor.data.data for tensor in found.values()), {})
    assert ours.parse(memoryview(b"".join(pieces))).tensors == found


F32 = {"dtype": "F32", "shape": [1]}
WRONG = {
    "nothing": b"",
    "half a length": b"\0\0\0",
    "length past the end": struct.pack("<Q", 9) + b"{}",
    "length of 2^63": struct.pack("<Q", 2**63) + b"{}",
    "not JSON": packed(b"{"),
    "not UTF-8": packed(b'{"\xff":1}'),
    "a list": packed([]),
    "a name twice": packed(b'{"a":1,"a":2}'),
    "nested too deeply": packed(b"[" * 10**5),
    "entry a number": packed({"a": 1}),
    "entry a list": packed({"a": [1, 2, 3]}),
    "no dtype": packed({"a": {"shape": [], "data_offsets": [0, 0]}}),
    "unknown dtype": packed({"a": {**F32, "dtype": "F31", "data_offsets": [0, 4]}}, bytes(4)),
    "dtype a list": packed({"a": {**F32, "dtype": ["F32"], "data_offsets": [0, 4]}}, bytes(4)),
    "shape a text": packed({"a": {**F32, "shape": "", "data_offsets": [0, 4]}}, bytes(4)),
    "shape negative": packed({"a": {**F32, "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
    "shape of -0": packed(
        b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'
    ),  # not an integer for the safetensors package
    "offset of -0": packed(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[-0,0]}}'),
    "shape of floats": packed({"a": {**F32, "shape": [1.0], "data_offsets": [0, 4]}}, bytes(4)),
    "shape that wraps": packed(
        {"a": {**F32, "shape": [2**62 + 1], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "further field": packed({"a": {**F32, "data_offsets": [0, 4], "x": 1}}, bytes(4)),
    "three offsets": packed({"a": {**F32, "data_offsets": [0, 4, 8]}}, bytes(4)),
    "offsets as booleans": packed({"a": {**F32, "data_offsets": [False, 4]}}, bytes(4)),
    "offsets backwards": packed({"a": {**F32, "data_offsets": [4, 0]}}, bytes(4)),
    "wrong length": packed({"a": {**F32, "data_offsets": [0, 8]}}, bytes(8)),
    "past the end": packed({"a": {**F32, "data_offsets": [0, 4]}}, bytes(3)),
    "bytes after the end": packed({"a": {**F32, "data_offsets": [0, 4]}}, bytes(5)),
    "a hole": packed(
        {"a": {**F32, "data_offsets": [0, 4]}, "b": {**F32, "data_offsets": [5, 9]}}, bytes(9)
    ),
    "an overlap": packed(
        {"a": {**F32, "data_offsets": [0, 4]}, "b": {**F32, "data_offsets": [2, 6]}}, bytes(6)
    ),
    "metadata of numbers": packed({"__metadata__": {"a": 1}}),
    "metadata a text": packed({"__metadata__": "a"}),
}


@pytest.mark.parametrize("what", WRONG)
def test_invalid_files_are_refused(what):
    with pytest.raises(errors.SourceError):
        ours.parse(memoryview(WRONG[what]))


def test_the_error_names_file_and_tensor(tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(WRONG["past the end"])
    with pytest.raises(errors.SourceError) as error:
        ours.read(path)
    assert str(error.value) == (
        "tensors overlap, leave a gap or go past the end of the file: damaged or truncated in "
        f"{path}: a: found bytes 0 to 4, expected from 0, within 3"
    )


def test_a_write_with_too_few_or_too_many_bytes_leaves_nothing(tmp_path):
    path = tmp_path / "x.safetensors"
    for contents in ([b"123"], [], [b"1234", b"5"]):
        with pytest.raises(ValueError, match="got|shorter|longer"):
            ours.write(path, [("a", "F32", (1,))], contents)
    with pytest.raises(ValueError, match="twice"):
        ours.write(path, [("a", "F32", (1,)), ("a", "F32", (1,))], [b"1234"] * 2)
    assert list(tmp_path.iterdir()) == []


def test_an_overlong_name_is_refused():
    """Earlier, a name of 100 kB with many dots took 4.9 GB in a merge."""
    entry = b'":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    text = b'{"' + b"a." * 50_000 + entry
    with pytest.raises(errors.SourceError, match="a name of 100000 characters"):
        ours.parse(memoryview(struct.pack("<Q", len(text)) + text))
