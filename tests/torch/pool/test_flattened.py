"""Layers whose input has samples and positions in one dimension."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.torch.models import tokens
from tests.torch.pool.adapters import adapter, logits, merged
from vbfmt.errors import ModelError
from vbfmt.torch import AdapterPool

NAMES = ["a", None, "b", "a"]
LAYERS = ["first", "fc1"]


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.fc1 = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        x = self.first(x)
        return self.fc1(x.reshape(-1, 16)).view(x.shape)


class Mixture(nn.Module):
    """A mixture of two experts; a router selects one for each position."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(16, 16)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x):
        flat, result = self.first(x).reshape(-1, 16), torch.zeros(x.shape[:-1].numel(), 16)
        for number, expert in enumerate(self.experts):
            (chosen,) = torch.where((flat[:, 0] > 0).long() == number)
            chosen = chosen.flip(0)  # some routers sort positions by score
            if len(chosen):
                result[chosen] = expert(flat[chosen])
        return result.view(x.shape)


def opt():
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"vocab_size": 50, "max_position_embeddings": 32, "word_embed_proj_dim": 32}
    return OPTForCausalLM(OPTConfig(**sizes, **more))


def pool_of(make, targets):
    pool = AdapterPool(make().eval())
    found = {name: adapter(make, targets, seed) for seed, name in enumerate("ab")}
    for name, each in found.items():
        pool.put(name, each)
    return pool, {name: merged(make, name and found[name]) for name in (*found, None)}


@pytest.mark.parametrize("targets", [LAYERS, ["fc1"]])
def test_positions_keep_their_order(targets):
    pool, alone = pool_of(Flat, targets)
    for positions in (1, 3, 4):
        x = torch.randn(4, positions, 16)
        with torch.no_grad(), pool.forward(NAMES):
            mixed = pool.model(x)
        wanted = torch.cat([alone[name](x[at : at + 1]) for at, name in enumerate(NAMES)])
        torch.testing.assert_close(mixed, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["a"] * 8])
def test_names_of_all_samples_may_be_equal(names):
    pool, _ = pool_of(Flat, ["fc1"])
    with pytest.raises(ModelError, match="fc1: found 12 rows"), pool.forward(names):
        pool.model(torch.randn(4, 3, 16))


def test_opt_generates_the_same_tokens():
    pool, alone = pool_of(opt, ["q_proj", "fc1", "fc2"])
    ids = tokens(rows=4)[:, :5]
    with pool.forward(NAMES):
        mixed = logits(pool.model, ids)
    wanted = [logits(alone[name], ids[at : at + 1]) for at, name in enumerate(NAMES)]
    torch.testing.assert_close(mixed, torch.cat(wanted), rtol=1e-5, atol=1e-5)
    how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    for more in ({}, {"num_beams": 3}):
        mixed = pool.generate(ids, adapter_names=NAMES, **how, **more)
        for at, name in enumerate(NAMES):
            one = alone[name].generate(ids[at : at + 1], **how, **more)
            assert torch.equal(mixed[at : at + 1], one)


def test_experts_have_an_adapter_in_a_batch_of_one_sample():
    pool, alone = pool_of(Mixture, ["experts.0", "experts.1"])
    x = torch.randn(2, 5, 16)
    for name in "ab":
        with torch.no_grad(), pool.forward([name]):
            found = pool.model(x[:1])
        torch.testing.assert_close(found, alone[name](x[:1]), rtol=1e-5, atol=1e-5)
    for positions in (1, 5):
        with pytest.raises(ModelError, match="a router has chosen"), pool.forward([*"ab"]):
            pool.model(x[:, :positions])
    with pytest.raises(ModelError, match="a router has chosen"), pool.forward(["a"]):
        pool.model(x)


def test_a_table_with_as_many_rows_as_positions_is_refused():
    class Relative(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.key_proj = nn.Linear(16, 16), nn.Linear(16, 16)
            self.table = nn.Parameter(torch.randn(12, 16))

        def forward(self, x):
            return self.first(x) @ self.key_proj(self.table).t()

    pool, _ = pool_of(Relative, ["first", "key_proj"])
    with pytest.raises(ModelError, match="key_proj: found 12 rows"), pool.forward(NAMES):
        pool.model(torch.randn(4, 3, 16))
