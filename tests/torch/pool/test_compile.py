"""A pool under torch.compile: the same results, in one graph, without recompilation for new
adapters."""

from __future__ import annotations

import threading

import pytest
import torch

from tests.torch.models import llama, net, tokens
from tests.torch.pool.adapters import ALL, ATTENTION, adapter, logits, merged
from vbfmt.torch import AdapterPool

LAYERS = ["encoder.0", "encoder.1", "out"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Graphs:
    """A backend that counts compilations and runs the graph unchanged."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


def compiled(model):
    graphs = Graphs()
    return torch.compile(model, backend=graphs, fullgraph=True), graphs


def test_adding_and_removing_adapters_causes_no_recompilation():
    model = net()
    pool = AdapterPool(model)
    found = {str(seed): adapter(net, LAYERS, seed) for seed in range(6)}
    called, graphs = compiled(model)
    x = torch.randn(4, 16)
    for name in "0123":
        pool.put(name, found[name])

    def check(names):
        with torch.no_grad(), pool.forward(names):
            mixed = called(x)
        for place, name in enumerate(names):
            with torch.no_grad():
                wanted = merged(net, name and found[name])(x[place])
            torch.testing.assert_close(mixed[place], wanted, rtol=1e-5, atol=1e-6)

    check(["0", "1", "2", "3"])
    once = graphs.count
    for names in (["3", None, "1", "0"], ["2", "2", "2", None]):
        check(names)
    pool.remove("1")
    pool.put("4", found["4"])
    check(["4", "3", "0", "2"])
    pool.put("3", found["3"])
    check(["3", "3", "4", None])
    assert graphs.count == once == 1
    for seed in range(10, 18):  # new banks need more memory
        found[str(seed)] = adapter(net, LAYERS, seed)
        pool.put(str(seed), found[str(seed)])
        check([str(seed), "4", None, "0"])
    assert graphs.count == 1


def test_a_form_is_valid_for_adapters_of_all_sizes():
    model = llama().eval()
    pool = AdapterPool(model, form=(5, 3, 4))
    sizes = [{}, {"r": 5}, {"topk": 3}, {"vector_length": 4}, {"num_vectors": 300}, {"r": 1}]
    found = {
        str(place): adapter(llama, ALL if place % 2 == 0 else ATTENTION, place, **each)
        for place, each in enumerate(sizes)
    }
    called, graphs = compiled(model)
    ids = tokens(rows=3)
    counts = []
    for names in (["0", "1", None], ["2", "3", "0"], ["4", None, "5"], ["1", "5", "3"]):
        for name in names:
            if name is not None:
                pool.put(name, found[name])
        with pool.forward(names):
            mixed = logits(called, ids, use_cache=False)
        counts.append(graphs.count)
        for place, name in enumerate(names):
            alone = logits(merged(llama, name and found[name]), ids[place : place + 1])
            torch.testing.assert_close(mixed[place : place + 1], alone, rtol=2e-5, atol=2e-5)
    assert counts == [1, 1, 1, 1]


def test_code_compiled_before_the_pool_uses_the_pool():
    """Compiled code does not look for hooks that were added later."""
    model = net()
    called, _ = compiled(model)
    x = torch.randn(2, 16)
    with torch.no_grad():
        base = called(x)
        pool = AdapterPool(model)
        found = adapter(net, LAYERS, 1)
        pool.put("x", found)
        with pool.forward([None, "x"]):
            mixed = called(x)
        torch.testing.assert_close(mixed[1], merged(net, found)(x)[1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mixed[0], base[0])
        torch.testing.assert_close(called(x), base)
        pool.close()
        torch.testing.assert_close(called(x), base)


def test_every_thread_has_its_own_batch():
    model = net()
    pool = AdapterPool(model)
    found = [adapter(net, LAYERS, seed) for seed in range(4)]
    for place, each in enumerate(found):
        pool.put(str(place), each)
    called, _ = compiled(model)
    x = torch.randn(2, 16)
    with torch.no_grad(), pool.forward(["0", "1"]):
        called(x)
    wanted = [merged(net, each)(x)[0].detach() for each in found]
    faults = []
    together = threading.Barrier(4)

    def work(place):
        try:
            with torch.no_grad(), pool.forward([str(place), None]):
                together.wait()
                for _ in range(20):
                    torch.testing.assert_close(called(x)[0], wanted[place], rtol=1e-5, atol=1e-6)
        except BaseException as error:  # noqa: BLE001
            faults.append(error)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults[0]


@pytest.mark.slow
def test_inductor_gives_the_same_numbers():
    model = llama().eval()
    pool = AdapterPool(model)
    found = adapter(llama, ALL, 1)
    pool.put("x", found)
    called = torch.compile(model, fullgraph=True)
    ids = tokens(rows=2)
    for length in (10, 1):
        with pool.forward(["x", None]):
            mixed = logits(called, ids[:, :length], use_cache=False)
        alone = logits(merged(llama, found), ids[:1, :length])
        torch.testing.assert_close(mixed[:1], alone, rtol=2e-5, atol=2e-5)
