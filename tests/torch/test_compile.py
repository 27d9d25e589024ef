"""Training under torch.compile: the same results, and no graph break inside the composition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.torch.models import Net, batch, config, losses, net
from vbfmt.torch import adapters_of, compose, disabled, inject, param_groups


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def losses_of(model, called):
    """Return the losses of five steps. `called` is the model or its compiled form."""
    return losses(called, torch.optim.AdamW(param_groups(model)), range(5))


def made():
    torch.manual_seed(4)
    model = net()
    inject(model, config(num_vectors=512, modules_to_save=["classifier"]))
    return model


def test_the_composition_is_one_graph():
    explained = torch._dynamo.explain(compose)(
        torch.randn(512, 8), [torch.randn(4, 512), torch.randn(2, 512)], 2
    )
    assert explained.graph_break_count == 0


def test_a_whole_model_is_one_graph_with_the_same_losses():
    """`fullgraph` refuses graph breaks, so the hooks, the composition and the layers are in one
    graph.

    The backend runs the captured graph without a C++ compiler.
    """
    eager, model = made(), made()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected = losses_of(eager, eager)
    assert losses_of(model, compiled) == pytest.approx(expected, rel=1e-6)
    assert adapters_of(compiled) is adapters_of(model)
    x, _ = batch()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), eager(x))
    with disabled(model), disabled(eager), torch.no_grad():
        torch.testing.assert_close(compiled(x), eager(x))


def test_nothing_is_kept_after_a_compiled_pass():
    model = made()
    x, _ = batch()
    torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    assert nothing_is_held(model)


def nothing_is_held(model):
    composition = adapters_of(model).adapter().composition
    return all(
        composition.matrices_of(slot, layer.logits) is None
        for slot, layer in zip(composition._slots, composition.layers, strict=True)
    )


class BrokenNet(Net):
    """A model with a graph break."""

    def forward(self, x):
        x = torch.tanh(self.encoder[1](torch.tanh(self.encoder[0](x))))
        torch._dynamo.graph_break()
        return self.classifier(torch.tanh(self.out(x)))


def test_a_model_whose_graph_breaks_has_the_same_losses():
    eager, model = made(), made()
    model.__class__ = BrokenNet
    compiled = torch.compile(model, backend="aot_eager")
    assert losses_of(model, compiled) == pytest.approx(losses_of(eager, eager), rel=1e-6)
    assert nothing_is_held(model)


class Block(nn.Module):
    """A block of a deep model, with a graph break."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        hidden = torch.tanh(self.up(x))
        torch._dynamo.graph_break()
        return x + self.down(hidden)


def deep_net(layers, adapted):
    torch.manual_seed(2)
    model = nn.Sequential(*(Block() for _ in range(layers)))
    if adapted:
        inject(model, config(target_modules="all-linear"))
    return model


def whole(model, backend):
    return torch.compile(model, backend=backend)


def layer_by_layer(model, backend):
    for layer in model:
        if isinstance(layer, Block):
            layer.compile(backend=backend)
    return model


def graphs_of(layers, adapted, compiled):
    """Return the number of graphs that are compiled for two training passes and one evaluation."""
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = deep_net(layers, adapted)
    called = compiled(model, backend)
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(3), requires_grad=True)
    for _ in range(2):
        called(x).sum().backward()
    with torch.no_grad():
        called(x)
    return len(graphs)


@pytest.mark.parametrize("compiled", [whole, layer_by_layer])
def test_layers_of_one_kind_are_compiled_once(compiled):
    """dynamo compiles a frame at most eight times, so nothing in it may depend on a layer's
    index."""
    pytest.importorskip("torch", minversion="2.8")  # older: one graph per layer
    twelve = graphs_of(12, True, compiled)
    assert twelve == graphs_of(3, True, compiled)
    assert twelve <= graphs_of(12, False, compiled) + 4


@pytest.mark.parametrize("compiled", [whole, layer_by_layer])
def test_layers_that_are_compiled_separately_give_the_same_outputs(compiled):
    model, eager = deep_net(12, True), deep_net(12, True)
    called = compiled(model, "aot_eager")
    x = torch.randn(3, 16)
    for each, outer in ((called, model), (eager, eager)):
        each(x).square().mean().backward()
        assert all(p.grad is not None for p in outer.parameters() if p.requires_grad)
    for one, other in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert nothing_is_held(model)


@pytest.mark.slow
def test_inductor_gives_the_same_losses():
    eager, model = made(), made()
    expected = losses_of(eager, eager)
    assert losses_of(model, torch.compile(model, fullgraph=True)) == pytest.approx(
        expected, rel=1e-5
    )


def test_autocast_and_compile_together():
    eager, model = made(), made()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x, _ = batch()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x), eager(x), rtol=2**-7, atol=2**-7)
