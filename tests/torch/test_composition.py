"""Eq. 3.3 on tensors: selection, composition, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from vbfmt.torch import VBLoRALinear, VectorBank, compose
from vbfmt.torch.selection import select_top_k


def algorithm_1(logits, bank, k):
    """Return the paper's get_low_rank_matrix, with the missing unsqueeze added."""
    top, indices = logits.topk(k, dim=-1)
    return (top.softmax(-1).unsqueeze(-1) * bank[indices]).sum(-2)


@given(
    h=st.integers(1, 2100) | st.sampled_from([512, 640, 1024, 2048]),
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    k=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
)
@example(h=1000, counts=[18, 2], k=2, seed=0)  # not a multiple of the chunk length
def test_any_bank_size_selects_what_topk_selects(h, counts, k, seed):
    k = min(k, h)
    generator = torch.Generator().manual_seed(seed)
    blocks = [torch.randn(n, h, generator=generator, dtype=torch.float64) for n in counts]
    values, expected = torch.cat(blocks).topk(k, dim=1)
    indices, top = select_top_k(blocks, k)
    assert torch.equal(indices, expected)
    assert torch.equal(top, values)


@given(h=st.sampled_from([5, 64, 512]), k=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_equal_logits_never_select_a_vector_twice(h, k, seed):
    logits = torch.randint(0, 2, (4, h), generator=torch.Generator().manual_seed(seed)).float()
    chosen, top = select_top_k([logits], k)
    assert all(len(set(row)) == k for row in chosen.tolist())
    assert torch.equal(logits.gather(1, chosen), top)
    assert torch.equal(top, logits.topk(k, dim=1).values)


@pytest.mark.parametrize("h", [16, 512])
def test_nan_in_the_logits_gives_nan(h):
    logits = torch.zeros(3, h)
    logits[1, 7] = float("nan")
    rows = compose(torch.ones(h, 4), [logits], 2)
    assert rows.isnan().any(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("h", [9, 512])
def test_gradcheck_in_float64(k, h):
    generator = torch.Generator().manual_seed(k)

    def leaf(*shape):
        # Logits differ by much more than gradcheck's step, so there are no ties.
        values = torch.randperm(int(np.prod(shape)), generator=generator).double()
        return (values / values.numel() * 4).reshape(shape).requires_grad_()

    bank = torch.randn(h, 3, generator=generator, dtype=torch.float64).requires_grad_()
    logits = [leaf(2, h), leaf(1, h)]
    assert torch.autograd.gradcheck(
        lambda bank, *logits: compose(bank, logits, k), (bank, *logits), fast_mode=h > 100
    )


def test_logits_that_are_not_selected_get_a_zero_gradient():
    logits = torch.randn(3, 10, requires_grad=True)
    compose(torch.randn(10, 4), [logits], 2).square().sum().backward()
    selected = torch.zeros(3, 10).scatter(1, logits.topk(2).indices, 1) > 0
    assert (logits.grad[~selected] == 0).all()
    assert (logits.grad[selected] != 0).all()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_layer_computes_the_papers_algorithm_1(k):
    """Algorithm 1 says x·W + (x·B)·A: its B is the factor next to the input, our A, and its W is
    stored as (in, out). Its logits are (d/b, r, h); vbfmt's are ordered by component, then by
    tile."""
    torch.manual_seed(0)
    d_in, d_out, b, r, h = 24, 16, 8, 3, 12
    bank = VectorBank(h, b, init_bound=0.5).double()
    base = nn.Linear(d_in, d_out, bias=False).double()
    layer = VBLoRALinear(base, bank, r=r, topk=k, init_logits_std=1.0).double()
    logits_b = torch.randn(d_in // b, r, h, dtype=torch.float64)  # the paper's names
    logits_a = torch.randn(d_out // b, r, h, dtype=torch.float64)
    with torch.no_grad():
        layer.updates["default"].logits.copy_(
            torch.cat([x.transpose(0, 1).reshape(-1, h) for x in (logits_b, logits_a)])
        )
    x = torch.randn(5, d_in, dtype=torch.float64)
    composed_a = algorithm_1(logits_a, bank.weight, k).transpose(0, 1).reshape(r, -1)
    composed_b = algorithm_1(logits_b, bank.weight, k).transpose(1, 2).reshape(-1, r)
    expected = x @ base.weight.T + (x @ composed_b) @ composed_a
    torch.testing.assert_close(layer(x), expected, rtol=1e-14, atol=1e-14)


def test_bank_and_logits_start_as_the_paper_says():
    torch.manual_seed(0)
    bank = VectorBank(90, 256)
    assert bank.weight.abs().max() <= 0.02
    assert abs(bank.weight.std().item() - 0.02 / 3**0.5) < 1e-4
    layer = VBLoRALinear(nn.Linear(512, 512), bank, init_logits_std=0.01)
    assert abs(layer.updates["default"].logits.std().item() - 0.01) < 1e-3
