"""Uses of a pool that would give wrong results are refused."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import vbfmt
from tests.conftest import warned
from tests.torch.models import NET_TARGETS, config, llama, net, peft_model, tokens
from tests.torch.pool.adapters import ALL, adapter, logits
from vbfmt.errors import ConfigError, ContentError, ModelError, VbfmtWarning
from vbfmt.torch import AdapterPool, eject, inject

LAYERS = ["encoder.0", "encoder.1", "out"]


@pytest.fixture
def pool():
    made = AdapterPool(net())
    made.put("x", adapter(net, LAYERS, 1))
    return made


def run(pool, names, rows):
    with torch.no_grad(), pool.forward(names):
        return pool._model(torch.randn(rows, 16))


@pytest.mark.parametrize(("names", "rows"), [(["x"], 2), (["x", None], 1), (["x", "x"], 4)])
def test_the_number_of_names_must_be_that_of_the_samples(pool, names, rows):
    with pytest.raises(ModelError, match=f"encoder.0: found {rows} rows.*expected {len(names)}"):
        run(pool, names, rows)
    assert run(pool, ["x"], 1).shape == (1, 2), "nothing is left of the batch that failed"


@pytest.mark.parametrize("names", [[], "x", ()])
def test_an_empty_list_of_names(pool, names):
    with pytest.raises(ConfigError, match="not the names of a batch's adapters"):
        run(pool, names, 1)


@pytest.mark.parametrize("name", ["", "__base__", None, 3])
def test_an_invalid_name(pool, name):
    with pytest.raises(ConfigError, match="not a name for an adapter"):
        pool.put(name, adapter(net, LAYERS, 1))


@pytest.mark.parametrize("copies", [0, -1, 1.5])
def test_an_invalid_number_of_copies(pool, copies):
    with pytest.raises(ConfigError, match="copies"), pool.forward(["x"], copies=copies):
        pass


def test_an_adapter_of_another_model(pool, tmp_path):
    other = adapter(llama, ALL, 1)
    with pytest.raises(ModelError, match=r"belongs to another model: found no model\.layers"):
        pool.put("y", other)
    vbfmt.save(other, tmp_path / "other.vblora")
    with pytest.raises(ModelError, match=r"another model in .*other\.vblora"):
        pool.put("y", tmp_path / "other.vblora")
    assert pool.names == ["x"]


def test_unverified_values(pool, tmp_path):
    """Invalid values of a file that was read with ``verify=False`` must not change the outputs of
    other samples."""
    found = adapter(net, LAYERS, 2)

    def damaged(**fields):
        made = object.__new__(vbfmt.Adapter)
        for name, value in {**found.__dict__, **fields}.items():
            object.__setattr__(made, name, value)
        return made

    bank, indices, weights = found.bank.copy(), found.indices.copy(), found.weights.copy()
    bank[3, 1], indices[5, 1], weights[7, 0] = np.nan, 16, np.inf
    for each, part in (
        (damaged(bank=bank), "bank"),
        (damaged(indices=indices), "indices"),
        (damaged(weights=weights), "weights"),
    ):
        with pytest.raises(ContentError, match=part):
            pool.put("y", each)
    assert pool.names == ["x"]


def test_samples_and_positions_in_one_dimension():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x):
            return self.layer(x.reshape(-1, 16)).view(x.shape)

    pool = AdapterPool(Flat())
    pool.put("x", adapter(Flat, ["layer"], 1))
    with pytest.raises(ModelError, match="layer: found 12 rows"), pool.forward(["x", "x", None]):
        pool._model(torch.randn(3, 4, 16))


def test_a_nested_tensor_is_refused():
    pool = AdapterPool(nn.Sequential(nn.Linear(16, 16)))
    pool.put("x", adapter(lambda: nn.Sequential(nn.Linear(16, 16)), ["0"], 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.randn(2, 16), torch.randn(3, 16)])
    with pytest.raises(ModelError, match="does not map samples"), pool.forward(["x", None]):
        pool._model(nested)


def test_a_model_that_already_has_adapters():
    model = net()
    inject(model, config())
    with pytest.raises(ModelError, match="eject that adapter first"):
        AdapterPool(model)
    eject(model)
    pool = AdapterPool(model)
    inject(model, config())
    for use in (lambda: pool.put("x", adapter(net, LAYERS, 1)), lambda: run(pool, [None], 1)):
        with pytest.raises(ModelError, match="an adapter was injected into the pool's model"):
            use()


def test_a_model_of_peft():
    with pytest.raises(ModelError, match="wrapped"):
        AdapterPool(peft_model(net(), NET_TARGETS))


def test_two_pools():
    model = net()
    pool = AdapterPool(model)
    with pytest.raises(ModelError, match="the model has a pool"):
        AdapterPool(model)
    with pytest.raises(ModelError, match="the model has a pool"):
        AdapterPool(nn.Sequential(model))
    pool.close()
    AdapterPool(model)


def test_a_pool_that_is_closed(pool):
    model = pool._model
    pool.close()
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ModelError, match="the pool is closed"):
        run(pool, ["x"], 1)
    with pytest.raises(ModelError, match="the pool is closed"):
        pool.put("x", adapter(net, LAYERS, 1))


def test_a_model_that_was_moved(pool):
    pool._model.to("meta")
    with pytest.raises(ModelError, match="moved: found meta, expected cpu"):
        run(pool, ["x"], 1)


def test_a_model_without_layers():
    with pytest.raises(ModelError, match="no linear layers"):
        AdapterPool(nn.Sequential(nn.Tanh()))


@pytest.mark.parametrize("form", [(1, 2), (0, 1, 1), (2, 2, 2.0), (1, -1, 4)])
def test_an_invalid_form(form):
    with pytest.raises(ConfigError, match="form: found"):
        AdapterPool(net(), form=form)


@pytest.mark.parametrize("form", [(2, 2, 8), (3, 1, 8), (3, 2, 16), (3, 2, 3)])
def test_an_adapter_that_exceeds_the_form(form):
    pool = AdapterPool(net(), form=form)
    with pytest.raises(ConfigError, match="found rank 3, k 2, b 8, expected rank ≤"):
        pool.put("x", adapter(net, LAYERS, 1))


def test_a_model_that_does_not_generate(pool):
    with pytest.raises(ModelError, match="does not generate: found Net"):
        pool.generate(torch.zeros(1, 1), adapter_names=["x"])


def test_copies_of_the_model_have_no_pool(pool):
    """Neither a deep copy nor a pickled copy has it. The state dict is that of the base."""
    x = torch.randn(1, 16)
    with torch.no_grad():
        base = pool._model(x)
        for copied in (copy.deepcopy(pool._model), pickle.loads(pickle.dumps(pool._model))):
            with pool.forward(["x"]):
                assert torch.equal(copied(x), base)
                assert not torch.equal(pool._model(x), base)
    assert pool._model.state_dict().keys() == net().state_dict().keys()


def test_nested_blocks():
    pool = AdapterPool(llama().eval())
    pool.put("x", adapter(llama, ALL, 1))
    ids = tokens(rows=1)
    with pool.forward(["x"]):
        adapted = logits(pool._model, ids)
        with pool.forward([None]):
            assert not torch.equal(logits(pool._model, ids), adapted)
        assert torch.equal(logits(pool._model, ids), adapted)


def test_a_layer_that_the_model_never_calls():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.called, self.read = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return nn.functional.linear(self.called(x), self.read.weight)

    torch._dynamo.utils.counters.clear()
    pool = AdapterPool(Reads())
    pool.put("x", adapter(Reads, ["called", "read"], 1))
    with pytest.warns(VbfmtWarning, match="^read: these layers were not called"):
        run(pool, ["x"], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(pool, ["x"], 1)


def test_each_layer_that_is_not_called_is_named_once():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.called, self.one, self.two = (nn.Linear(16, 16) for _ in range(3))
            self.experts = nn.ModuleList([nn.Linear(16, 16)])

        def forward(self, x):
            return self.called(x) @ self.one.weight @ self.two.weight

    torch._dynamo.utils.counters.clear()
    pool = AdapterPool(Reads())
    for name, targets in {"a": ["one"], "b": ["one", "two"], "c": ["experts.0"]}.items():
        pool.put(name, adapter(Reads, ["called", *targets], 1))
    for name, named in {"a": "one", "b": "two", "c": None}.items():
        with warned() as messages:
            run(pool, [name], 1)
        assert [message.partition(":")[0] for message in messages] == ([named] if named else [])


@pytest.mark.parametrize(
    "settings", [{"form": 4}, {"form": "abc"}, {"source": "folder"}, {"limit": "1"}]
)
def test_settings_of_a_pool_that_are_not_valid(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        AdapterPool(nn.Sequential(nn.Linear(16, 16)), **settings)


@pytest.mark.parametrize("model", ["model", None, 3])
def test_what_is_not_a_model(model):
    with pytest.raises(ModelError, match="not a model"):
        AdapterPool(model)


def test_a_model_whose_layers_have_positions_as_the_first_dimension():
    from transformers import XLNetConfig, XLNetLMHeadModel

    sizes = {"d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 32, "vocab_size": 50}
    with pytest.raises(ModelError, match="see positions before samples.*found xlnet"):
        AdapterPool(XLNetLMHeadModel(XLNetConfig(**sizes)))
