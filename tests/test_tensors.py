"""The class `Tensor`, for tensors that are stored unchanged."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

from tests.strategies import tensors
from vbfmt import Tensor, errors
from vbfmt.converters._files import safetensors as safetensors_file
from vbfmt.tensors import BITS, byte_length, numpy_dtype

WHOLE_BYTES = [name for name, bits in BITS.items() if bits >= 8]


@pytest.mark.parametrize("dtype", WHOLE_BYTES)
def test_every_dtype_of_whole_bytes_converts_to_numpy_and_back(dtype):
    data = np.arange(3 * BITS[dtype] // 8, dtype=np.uint8)
    if dtype == "BOOL":
        data &= 1
    tensor = Tensor(dtype, (3, 1), data)
    values = tensor.numpy()
    assert values.shape == (3, 1)
    assert values.dtype.itemsize * 8 == BITS[dtype]
    assert Tensor.of(values) == tensor


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3"])
def test_elements_smaller_than_a_byte_have_no_numpy_array(dtype):
    with pytest.raises(errors.ContentError, match="no numpy dtype"):
        Tensor(dtype, (4,), np.zeros(4 * BITS[dtype] // 8, np.uint8)).numpy()


@given(tensors())
def test_length_is_that_of_dtype_and_shape(tensor):
    assert byte_length(tensor.dtype, tensor.shape) == tensor.data.size
    with pytest.raises(errors.ContentError, match="wrong length"):
        Tensor(tensor.dtype, tensor.shape, np.zeros(tensor.data.size + 1, np.uint8))


def test_big_endian_arrays_are_converted():
    tensor = Tensor.of(np.array([1, 258], dtype=">u2"))
    assert tensor.data.tolist() == [1, 0, 2, 1]
    assert tensor.dtype == "U16"


def test_unknown_dtypes_are_refused():
    with pytest.raises(errors.ContentError, match="unknown dtype"):
        Tensor("F12", (1,), np.zeros(1, np.uint8))
    with pytest.raises(errors.ContentError, match="no safetensors dtype"):
        Tensor.of(np.array(["text"]))


def test_bfloat16_is_that_of_ml_dtypes():
    assert numpy_dtype("BF16") == ml_dtypes.bfloat16


def test_the_table_has_every_dtype_that_safetensors_reads(tmp_path):
    safetensors = pytest.importorskip("safetensors", minversion="0.6")  # older versions have fewer
    specs = [(dtype, dtype, (8,)) for dtype in BITS]
    path = tmp_path / "all.safetensors"
    safetensors_file.write(path, specs, (bytes(bits) for bits in BITS.values()))
    with safetensors.safe_open(path, "np") as file:
        assert {key: file.get_slice(key).get_dtype() for key in file.keys()} == {  # noqa: SIM118
            dtype: dtype for dtype in BITS
        }


@pytest.mark.parametrize(
    ("shape", "data", "message"),
    [
        ((-1, -1), np.zeros(1, np.uint8), "negative size"),
        ((1,), np.zeros(1, np.int8), "one-dimensional bytes"),
        ((1, 1), np.zeros((1, 1), np.uint8), "one-dimensional bytes"),
    ],
)
def test_invalid_tensors_are_refused(shape, data, message):
    with pytest.raises(errors.ContentError, match=message):
        Tensor("U8", shape, data)


@pytest.mark.parametrize("shape", [(0, 2**63), (0, 2**62, 8), (0,) * 70, (0, 2**64)])
def test_a_shape_that_numpy_does_not_support_is_one_error(shape):
    tensor = Tensor("F32", shape, np.empty(0, np.uint8))
    with pytest.raises(errors.ContentError, match="numpy has no such shape"):
        tensor.numpy()


def test_a_tensor_is_not_equal_to_anything_else():
    assert Tensor.of(np.ones(1)) != "something else"


@pytest.mark.parametrize("sizes", [[2**64 - 1] * 300, [2**64 - 1] * 200_000, [2**63, 1]])
def test_an_impossible_length_is_none_and_computed_quickly(sizes):
    assert byte_length("U8", tuple(sizes)) is None
    assert byte_length("U8", (*sizes, 0)) == 0


def test_the_largest_possible_length_is_computed():
    assert byte_length("F4", (2**63 - 1, 2)) == 2**63 - 1
    assert byte_length("F4", (2**63, 2)) is None
