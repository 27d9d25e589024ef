"""Layers and banks used by themselves, without `inject`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vbfmt.errors import ConfigError, ContentError, ModelError
from vbfmt.tensors import Tensor
from vbfmt.torch import VBLoRAConfig, VBLoRALinear, VectorBank
from vbfmt.torch.admixture import LowRankUpdate
from vbfmt.torch.tensors import to_format, to_torch


def test_a_layer_shows_its_sizes_and_has_the_parameters_of_its_base():
    base = nn.Linear(8, 4)
    layer = VBLoRALinear(base, VectorBank(6, 4), r=3, topk=2)
    assert layer.weight is base.weight
    assert layer.bias is base.bias
    assert "8 → 4, rank=3, k=2" in repr(layer)


def test_a_bank_shows_its_sizes_and_whether_it_is_frozen():
    bank = VectorBank(6, 4)
    assert repr(bank) == "VectorBank(h=6, b=4)"
    bank.frozen = True
    assert repr(bank) == "VectorBank(h=6, b=4, frozen)"


@pytest.mark.parametrize("size", [0, -1, 4.0, True, "4"])
def test_a_bank_with_an_invalid_size_is_refused(size):
    for sizes, what in (((size, 4), "num_vectors"), ((6, size), "vector_length")):
        with pytest.raises(ConfigError, match=f"{what}: found {size!r}, expected a w"):
            VectorBank(*sizes)


@pytest.mark.parametrize("bound", [float("nan"), float("inf"), -0.02, "0.02"])
def test_a_bank_with_an_invalid_bound_is_refused(bound):
    with pytest.raises(ConfigError, match=f"init_bound: found {bound!r}, expected"):
        VectorBank(6, 4, init_bound=bound)


@pytest.mark.parametrize("rank", [0, 2.0, "2"])
def test_an_invalid_rank_is_refused(rank):
    with pytest.raises(ConfigError, match=f"r: found {rank!r}, expected a whole"):
        VBLoRALinear(nn.Linear(8, 4), VectorBank(6, 4), r=rank)


@pytest.mark.parametrize("topk", [0, 7, 2.0])
def test_k_above_the_size_of_the_bank_is_refused(topk):
    with pytest.raises(ConfigError, match=rf"found {topk}, expected 1 to 6 \(h\)"):
        VBLoRALinear(nn.Linear(8, 4), VectorBank(6, 4), topk=topk)


def test_a_vector_length_that_does_not_divide():
    with pytest.raises(ConfigError, match="b = 3, 8 → 4, expected a divisor of 4"):
        VBLoRALinear(nn.Linear(8, 4), VectorBank(6, 3))


def test_a_layer_that_cannot_be_adapted():
    with pytest.raises(ModelError, match="found Conv2d"):
        VBLoRALinear(nn.Conv2d(3, 3, 1))


def test_an_update_without_factors_is_none():
    with pytest.raises(NotImplementedError):
        LowRankUpdate().factors()


def test_dtypes_that_only_pytorch_or_only_the_format_has():
    with pytest.raises(ContentError, match=r"no safetensors dtype: found torch\.complex128"):
        to_format(torch.zeros(1, dtype=torch.complex128))
    with pytest.raises(ContentError, match="no PyTorch dtype: found F4"):
        to_torch(Tensor("F4", (2,), Tensor.of(torch.zeros(1, dtype=torch.uint8).numpy()).data))


def test_a_config_of_another_kind_of_adapter():
    with pytest.raises(ConfigError, match="another kind of adapter: peft_type: found LORA"):
        VBLoRAConfig.from_peft({"peft_type": "LORA", "r": 4})
