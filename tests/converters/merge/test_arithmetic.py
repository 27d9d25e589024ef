"""W + B·A compared with float64, element by element."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.converters.merge.folders import adapter_of, tensor_of
from vbfmt import errors
from vbfmt.converters.merge import arithmetic, rounding
from vbfmt.converters.merge.layout import Part
from vbfmt.converters.merge.stream import factors_of
from vbfmt.converters.names.blocks import Block
from vbfmt.tensors import Tensor, numpy_dtype

DTYPES = ("F32", "BF16", "F16", "F64")


def computed(piece: arithmetic.Piece) -> bytes:
    data = np.full(piece.size, 0xAB, np.uint8)
    piece.fill(data)
    return data.tobytes()


def merged(weight: Tensor, a, b, dtype, *, transposed=False):
    pieces = arithmetic.merged("w", weight, (b.T, a.T) if transposed else (a, b), dtype)
    data = b"".join(map(computed, pieces))
    return np.frombuffer(data, numpy_dtype(dtype)).reshape(weight.shape)


def exact(weight: Tensor, a, b, dtype):
    """Return W + B·A in float64, and the tolerance of the arithmetic for a result of this dtype."""
    bits = 23 if dtype in ("BF16", "F16") and weight.dtype != "F64" else 51
    wide = weight.numpy().astype(np.float64)
    a, b = a.astype(np.float64), b.astype(np.float64)
    total = wide + b @ a
    noise = 2.0**-bits * ((len(a) + 2) * (np.abs(b) @ np.abs(a)) + np.abs(total))
    return total, noise


def rounded(values, dtype):
    """Return float64 values rounded once to nearest even, computed as integer multiples of the
    dtype's spacing."""
    if dtype == "F64":
        return values
    bits, least = {"F32": (24, -149), "F16": (11, -24), "BF16": (8, -133)}[dtype]
    exponent = np.maximum(np.frexp(values)[1] - bits, least)
    return np.ldexp(np.rint(np.ldexp(values, -exponent)), exponent)


def assert_right(found, total, noise, dtype):
    """Check that every element is the rounded float64 result, or near a rounding boundary one of
    the two neighbours."""
    found = found.astype(np.float64)
    low, high = rounded(total - noise, dtype), rounded(total + noise, dtype)
    assert ((low <= found) & (found <= high)).all()
    clear = low == high
    np.testing.assert_array_equal(found[clear], rounded(total, dtype)[clear])
    return clear.mean()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_every_element_is_the_float64_result_rounded_once(dtype, transposed):
    random = np.random.default_rng(0)
    a = random.standard_normal((4, 1500)).astype(np.float32)
    b = random.standard_normal((700, 4)).astype(np.float32)
    shape = (1500, 700) if transposed else (700, 1500)
    weight = tensor_of(random.standard_normal(shape), dtype)
    found = merged(weight, a, b, dtype, transposed=transposed)
    total, noise = exact(tensor_of(weight.numpy().T, dtype) if transposed else weight, a, b, dtype)
    clear = assert_right(found.T if transposed else found, total, noise, dtype)
    assert clear > 0.95 or dtype == "F64"


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_the_result_is_exact_where_weight_and_product_cancel_out(dtype):
    random = np.random.default_rng(0)
    a = random.standard_normal((4, 300)).astype(np.float32)
    b = random.standard_normal((200, 4)).astype(np.float32)
    product = b.astype(np.float64) @ a.astype(np.float64)
    weight = tensor_of((-product * (1 + 1e-7)).astype(np.float32), "F32")
    found = merged(weight, a, b, dtype).astype(np.float64)
    right = rounded(weight.numpy().astype(np.float64) + product, dtype)
    assert np.count_nonzero(right) > 50_000
    unit = {"BF16": 2.0**-7, "F16": 2.0**-10}[dtype]
    assert (np.abs(found - right) <= unit * np.abs(right) + 2.0**-24 * (dtype == "F16")).all()


@given(
    rows=st.integers(1, 40),
    columns=st.sampled_from([1, 7, 64, 70_000]),
    rank=st.sampled_from([1, 3, 8, 300]),
    given=st.sampled_from(DTYPES),
    wanted=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_rank_and_dtypes(rows, columns, rank, given, wanted, seed):
    rows, rank = (2, min(rank, 3)) if columns > 1000 else (rows, rank)
    random = np.random.default_rng(seed)
    a = random.standard_normal((rank, columns)).astype(np.float32)
    b = random.standard_normal((rows, rank)).astype(np.float32)
    weight = tensor_of(random.standard_normal((rows, columns)), given)
    assert_right(merged(weight, a, b, wanted), *exact(weight, a, b, wanted), wanted)


@given(
    given=st.sampled_from(DTYPES),
    wanted=st.sampled_from(DTYPES),
    values=st.lists(st.floats(-60000, 60000), min_size=1, max_size=50),
)
def test_conversion_rounds_once(given, wanted, values):
    tensor = tensor_of(np.array(values), given)
    data = b"".join(map(computed, arithmetic.converted("w", tensor, wanted)))
    found = np.frombuffer(data, numpy_dtype(wanted)).astype(np.float64)
    np.testing.assert_array_equal(found, rounded(tensor.numpy().astype(np.float64), wanted))


@pytest.mark.parametrize("value", [1 + 2**-8 + 2**-40, -1 - 2**-8 - 2**-40, 1 + 2**-8 - 2**-40])
def test_float64_is_rounded_to_bfloat16_directly_not_through_float32(value):
    (piece,) = arithmetic.converted("w", tensor_of(np.array([value]), "F64"), "BF16")
    found = np.frombuffer(computed(piece), numpy_dtype("BF16")).astype(np.float64)
    assert found == rounded(np.array([value]), "BF16")
    assert abs(found) == (1 + 2**-7 if abs(value) > 1 + 2**-8 else 1)


def test_pieces_are_complete_and_in_order():
    random = np.random.default_rng(0)
    tensor = tensor_of(random.standard_normal(9_000_000), "F32")
    pieces = list(arithmetic.converted("w", tensor, "BF16"))
    assert len(pieces) > 3
    data = b"".join(map(computed, pieces))
    assert data == tensor.numpy().astype(numpy_dtype("BF16")).tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_stays_so(value):
    weight = tensor_of(np.array([[value, 1.0]]), "F16")
    found = merged(weight, np.ones((1, 2), "f4"), np.ones((1, 1), "f4"), "F16")
    np.testing.assert_array_equal(found, np.array([[value, 2.0]], np.float16))


def test_a_weight_that_leaves_the_range_of_float16_is_refused():
    weight = tensor_of(np.array([[60000.0, 1.0]]), "F32")
    with pytest.raises(errors.TargetError, match="too large for float16: w; give `dtype="):
        merged(weight, np.ones((1, 2), "f4"), np.full((1, 1), 9000, "f4"), "F16")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("factor", [1e19, 3e38])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_sum_that_leaves_the_range_is_refused_in_any_dtype(dtype, factor):
    """Earlier, bfloat16 values became infinite without an error."""
    weight = tensor_of(np.array([[1e38, 3e38]]), dtype)
    a, b = np.full((1, 2), 2e19, "f4"), np.full((1, 1), factor, "f4")
    with pytest.raises(errors.TargetError, match="too large for"):
        merged(weight, a, b, dtype)


@pytest.mark.filterwarnings("error")
def test_float32_that_rounds_up_to_an_infinite_bfloat16_is_refused():
    (piece,) = arithmetic.converted("w", tensor_of(np.array([3.4e38])), "BF16")
    with pytest.raises(errors.TargetError, match="too large for bfloat16: w"):
        computed(piece)
    (piece,) = arithmetic.converted("w", tensor_of(np.array([3.38e38, np.inf])), "BF16")
    assert np.isinf(np.frombuffer(computed(piece), numpy_dtype("BF16"))).tolist() == [False, True]


@pytest.mark.filterwarnings("error")
def test_products_beyond_float32_that_cancel_out_are_right():
    a = np.array([[3e38, 1e-3], [3e38, 1e-3]], "f4")
    b = np.array([[2.0, -2.0], [1e-3, 1e-3]], "f4")
    weight = tensor_of(np.ones((2, 2)), "BF16")
    total = 1 + b.astype(np.float64) @ a.astype(np.float64)
    np.testing.assert_array_equal(merged(weight, a, b, "BF16"), rounded(total, "BF16"))


def test_a_row_may_be_longer_than_a_piece(monkeypatch):
    monkeypatch.setattr(arithmetic, "PIECE_BYTES", 64)
    random = np.random.default_rng(0)
    weight = tensor_of(random.standard_normal((3, 50)), "BF16")
    a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 50), (3, 2)))
    pieces = list(arithmetic.merged("w", weight, (a, b), "F32"))
    assert {piece.size for piece in pieces} == {64, 8}
    assert_right(merged(weight, a, b, "F32"), *exact(weight, a, b, "F32"), "F32")


@pytest.mark.parametrize(("rank", "columns"), [(1, 3), (4, 5632), (64, 14336), (300, 131_072)])
def test_products_have_several_rows_at_a_time(monkeypatch, rank, columns):
    """Earlier, rows of 14336 elements and a rank of 64 were multiplied one by one. OpenBLAS started
    threads for each, which was a hundred times slower."""
    seen = []

    def multiply(left, right, out):
        seen.append((len(left), left.size * right.shape[1]))
        out[:] = 1

    monkeypatch.setattr(np, "matmul", multiply)
    out = np.zeros((70, columns), np.float32)
    sides = np.zeros((70, rank), np.float32), np.zeros((rank, columns), np.float32)
    arithmetic._multiply(*sides, out)
    assert out.all()
    assert max(size for _, size in seen) <= arithmetic._PRODUCTS
    assert min(rows for rows, _ in seen[:-1] or seen) >= min(6, len(out))


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("share", [1 / 64, 1 / 2, 1])
def test_any_number_of_elements_may_be_computed_again(dtype, share):
    random = np.random.default_rng(0)
    a = random.standard_normal((16, 300)).astype(np.float32)
    b = random.standard_normal((200, 16)).astype(np.float32)
    product = b.astype(np.float64) @ a.astype(np.float64)
    cancelled = random.random(product.shape) < share
    weight = tensor_of(np.where(cancelled, -product * (1 + 1e-6), 1).astype(np.float32), "F32")
    found = merged(weight, a, b, dtype)
    exactly = rounded(weight.numpy().astype(np.float64) + product, dtype)
    np.testing.assert_array_equal(found[cancelled], exactly[cancelled])


def test_factors_whose_squares_are_zero_in_float32_cancel_out_too():
    """Earlier, their norms were zero in float32, so nothing was computed again in float64."""
    random = np.random.default_rng(0)
    a = (random.standard_normal((8, 50)) * 1e-24).astype(np.float32)
    b = (random.standard_normal((40, 8)) * 1e16).astype(np.float32)
    product = b.astype(np.float64) @ a.astype(np.float64)
    weight = tensor_of((-product * (1 + 1e-7)).astype(np.float32), "F32")
    found = merged(weight, a, b, "BF16")
    exactly = rounded(weight.numpy().astype(np.float64) + product, "BF16")
    np.testing.assert_array_equal(found, exactly)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "values",
    [
        np.array([[0x7F810000, 0x3F800000]], np.uint32).view(np.float32),
        np.array([[0x7F81, 0x3F80]], np.uint16).view(numpy_dtype("BF16")),
    ],
)
def test_a_signalling_nan_is_kept_without_a_warning(values):
    found = merged(Tensor.of(values), np.ones((1, 2), "f4"), np.ones((1, 1), "f4"), "BF16")
    np.testing.assert_array_equal(found.view(np.uint16) & 0x7FC0, [[0x7FC0, 0x4000]])


def test_a_sum_that_overflows_only_by_float32s_rounding_is_not_an_error():
    weight = tensor_of(np.array([[65519.996]], np.float32), "F32")
    found = merged(weight, np.full((1, 1), 0.003, "f4"), np.ones((1, 1), "f4"), "F16")
    assert found == 65504


def test_magnitude_bounds_are_never_negative():
    assert [rounding.magnitude_bound(0.0, dtype) for dtype in ("F16", "BF16")] == [0, 0]
    assert rounding.magnitude_bound(1.0, "BF16") == 2 * (0x3F80 + 1)


def test_factors_of_a_part_that_is_stored_transposed():
    """Rows 1 and 3 of the weight are columns 2 and 0 of the stored tensor, and the weight's columns
    are the tensor's rows in reverse order."""
    adapter = adapter_of({"m": (4, 8)})
    own, columns = np.array([1, 3]), np.arange(8)[::-1].copy()
    block = Block("t", np.array([2, 0]), columns, own, transposed=True)
    a, b = factors_of([Part(adapter["m"], block)], adapter, (8, 3))
    expected = np.zeros((8, 3), np.float32)
    expected[columns[:, None], block.rows] = adapter.delta("m")[own].T
    np.testing.assert_allclose(b @ a, expected, atol=1e-6)
