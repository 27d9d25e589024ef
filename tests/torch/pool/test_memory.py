"""Memory of a pool: free ranges, pages and banks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vbfmt.torch.pool.banks import Banks
from vbfmt.torch.pool.free_runs import FreeRuns
from vbfmt.torch.pool.pages import PAGE, Pages

CPU = torch.device("cpu")


@given(st.lists(st.tuples(st.integers(1, 20), st.sampled_from([1, 3, 8]), st.booleans())))
def test_ranges_never_overlap_and_are_reused(steps):
    free = FreeRuns(64)
    taken: list[tuple[int, int]] = []
    for size, align, give in steps:
        if give and taken:
            free.free(*taken.pop(len(taken) // 2))
        start = free.allocate(size, align)
        if start is not None:
            assert start % align == 0
            assert all(start + size <= other or other + n <= start for other, n in taken)
            assert 0 <= start <= 64 - size
            taken.append((start, size))
        assert free.total == 64 - sum(n for _, n in taken)
    for each in taken:
        free.free(*each)
    assert free.allocate(64) == 0, "neighbours have become one run"


def test_pieces_cover_all_free_memory():
    free = FreeRuns(10)
    taken = [free.allocate(2) for _ in range(5)]
    free.free(taken[1], 2)
    free.free(taken[3], 2)
    assert free.allocate_pieces(3) == [(2, 2), (6, 1)]
    assert free.allocate_pieces(3) == [(7, 1)]


@given(st.lists(st.tuples(st.integers(1, 3 * PAGE), st.booleans()), max_size=30))
def test_bytes_are_read_as_they_were_written(steps):
    pages = Pages(CPU)
    written = []
    for place, (size, free) in enumerate(steps):
        if free and written:
            runs, _ = written.pop(0)
            pages.free(runs)
        data = torch.full((size,), place, dtype=torch.uint8)
        data[-1] = 255
        # If there is no free range, new pages fill the gaps of removed ones.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("vbfmt.torch.pool.pages._FIRST_CHUNK", 4 * PAGE)
            written.append((pages.write(data, growth=0 if place % 2 else 1 << 30), data))
    for runs, data in written:
        assert torch.equal(torch.cat(pages.read(runs, len(data))), data)


def test_banks_of_different_sizes_are_not_moved():
    banks = Banks(CPU)
    random = np.random.default_rng(0)
    arrays = [random.uniform(-1, 1, (5 + n, 4 + 3 * (n % 4))).astype("<f4") for n in range(12)]
    used = [banks.use(banks.key(array), array) for array in arrays]
    for bank in used[::3]:
        assert banks.release(bank)
    more = random.uniform(-1, 1, (4, 5)).astype("<f4")
    again = banks.use(banks.key(more), more)
    assert again.start < used[-1].start, "it has the place of one that has left"
    for array, bank in [*[*zip(arrays, used, strict=True)][1::3], (more, again)]:
        assert bank.start % array.shape[1] == 0
        values = banks.memory[bank.start : bank.start + bank.size].view(bank.shape)
        assert torch.equal(values, torch.from_numpy(array))


def test_the_key_of_a_bank_is_its_content_and_shape():
    banks = Banks(CPU)
    one = np.arange(12, dtype="<f4").reshape(3, 4)
    fixed = np.frombuffer(one.tobytes(), dtype="<f4").reshape(3, 4)
    assert banks.key(one) == banks.key(fixed) == banks.key(fixed)
    assert banks.key(one) == banks.key(np.asfortranarray(one))
    assert banks.key(one) != banks.key(one.reshape(4, 3))
    assert banks.key(one) != banks.key(-one), "−0 and 0 are not the same bits"


def test_gaps_are_filled_before_memory_is_added(monkeypatch):
    monkeypatch.setattr("vbfmt.torch.pool.pages._FIRST_CHUNK", 8 * PAGE)
    pages = Pages(CPU)
    pairs = [torch.full((2 * PAGE,), place, dtype=torch.uint8) for place in range(4)]
    held = [pages.write(data, growth=1 << 30) for data in pairs]
    pages.free(held[0])
    pages.free(held[2])
    for size, runs, reserved in ((5, [2, 2, 1], 9), (4, [2, 2], 9)):
        data = torch.arange(size * PAGE).to(torch.uint8)
        written = pages.write(data, growth=0)
        assert [run.size for run in written] == runs
        assert pages.reserved == reserved * PAGE
        assert torch.equal(torch.cat(pages.read(written, len(data))), data)
        pages.free(written)
    for place in (1, 3):
        assert torch.equal(torch.cat(pages.read(held[place], 2 * PAGE)), pairs[place])
