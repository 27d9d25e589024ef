"""Parameters that DeepSpeed's ZeRO-3 partitions, without DeepSpeed: see `test_deepspeed.py`."""

from __future__ import annotations

import pytest
import torch

from tests.torch.models import batch, config, net
from vbfmt.errors import ModelError
from vbfmt.torch import inject, load_checkpoint, merge, num_stored_parameters, save_checkpoint
from vbfmt.torch.linear import features_of


def partition(parameter, persist=False):
    """Give a parameter the attributes that ZeRO-3 gives it, and remove its values."""
    values = parameter.detach().clone()
    parameter.ds_shape, parameter.ds_persist = parameter.shape, persist
    parameter.all_gather = lambda: setattr(parameter, "data", values.clone())
    parameter.partition = lambda: setattr(parameter, "data", torch.empty(0))
    parameter.partition()


def injected():
    torch.manual_seed(9)
    model = net()
    inject(model, config())
    return model


@pytest.mark.parametrize("persist", [False, True])
def test_partitioned_parameters_are_gathered_and_have_the_same_gradients(persist):
    plain, model, (x, _) = injected(), injected(), batch()
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        partition(parameter, persist)
    output = model(x)
    assert torch.equal(output, plain(x))
    assert all((p.numel() > 0) == persist for p in trained), "partitioned again after the pass"
    output.sum().backward()
    plain(x).sum().backward()
    for parameter, other in zip(
        trained, [p for p in plain.parameters() if p.requires_grad], strict=True
    ):
        torch.testing.assert_close(parameter.grad, other.grad)


def test_partitioned_parameters_are_saved_completely_but_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    plain, model = injected(), injected()
    for parameter in model.parameters():
        if parameter.requires_grad:
            partition(parameter)
    save_checkpoint(plain, tmp_path / "plain")
    save_checkpoint(model, tmp_path / "partitioned")
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("plain", "partitioned")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert num_stored_parameters(model) == num_stored_parameters(plain)
    with pytest.raises(ModelError, match=r"DeepSpeed's optimizer has copies .*engine\.load_check"):
        load_checkpoint(model, tmp_path / "plain")


def test_merging_into_a_partitioned_base_is_refused():
    model = injected()
    partition(model.out.base_layer.weight)
    with pytest.raises(ModelError, match=r"sharded .*: out; do it before deepspeed\.initialize"):
        merge(model)


def test_a_partitioned_layer_has_the_sizes_of_the_whole():
    layer = pytest.importorskip("transformers.pytorch_utils").Conv1D(8, 16)
    partition(layer.weight)
    assert features_of(layer) == (16, 8)
