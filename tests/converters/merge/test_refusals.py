"""Bases and adapters that a merge refuses: one line of reason, and no output."""

from __future__ import annotations

import json

import numpy as np
import pytest

import vbfmt
from tests.converters.merge.folders import (
    adapter_of,
    save_base,
    tensor_of,
    weights_of,
)
from tests.tensor_files import write_tensors
from vbfmt import errors
from vbfmt.converters import merge
from vbfmt.converters._files import safetensors
from vbfmt.converters.merge import layout
from vbfmt.converters.names.blocks import Block


def refused(base, words, adapter=None, kind=errors.SourceError, **options):
    with pytest.raises(kind) as caught:
        merge.plan(adapter or adapter_of(), base, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8"])
def test_a_base_that_is_quantized_by_its_config(tmp_path, method):
    config = {"quantization_config": {"quant_method": method}}
    folder = save_base(tmp_path / "base", weights_of(), config=config)
    refused(folder, ["quantized", method, "full precision"])


@pytest.mark.parametrize(
    "name",
    [
        "qweight",
        "SCB",
        "weight_scale_inv",
        "scale_weight",
        "W_q",
        "weight.absmax",
        "weight.quant_state.nf4",
    ],
)
def test_a_base_that_is_quantized_by_its_tensors(tmp_path, name):
    tensors = weights_of() | {f"model.layers.0.q.{name}": tensor_of(np.ones(4))}
    refused(save_base(tmp_path / "base", tensors), ["quantized", name])


def test_a_base_in_fp8(tmp_path):
    tensors = weights_of(dtype="F8_E4M3")
    refused(save_base(tmp_path / "base", tensors), ["quantized", "F8_E4M3", "layers.0"])


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8", "U8"])
def test_a_base_with_other_weights_in_8_bits(tmp_path, dtype):
    """Earlier, weights that the adapter does not change were not checked."""
    tensors = weights_of() | {"model.layers.0.up.weight": tensor_of(np.ones((4, 4)), dtype)}
    refused(save_base(tmp_path / "base", tensors), ["quantized", "layers.0.up.weight", dtype])


def test_a_mask_in_8_bits_is_accepted(tmp_path):
    tensors = weights_of() | {"model.layers.0.attn.bias": tensor_of(np.ones((1, 1, 4, 4)), "U8")}
    merge.plan(adapter_of(), save_base(tmp_path / "base", tensors))


def test_a_base_with_different_shapes(tmp_path):
    tensors = weights_of() | {"model.layers.1.k.weight": tensor_of(np.ones((8, 20)))}
    message = refused(
        save_base(tmp_path / "base", tensors), ["model.layers.1.k.weight", "does not fit"]
    )
    assert "found [8, 20], expected [8, 24]" in message


def test_a_trained_tensor_with_a_different_shape(tmp_path, base):
    adapter = adapter_of(tensors={"model.norm.weight": tensor_of(np.ones(20))})
    refused(base, ["trained tensor", "model.norm.weight", "[24]", "[20]"], adapter)


def test_two_trained_tensors_for_one_tensor_of_the_base(tmp_path):
    tensors = {name.removeprefix("model."): tensor for name, tensor in weights_of().items()}
    trained = {name: tensor_of(np.ones(24)) for name in ("norm.weight", "model.norm.weight")}
    folder = save_base(tmp_path / "base", tensors)
    refused(folder, ["two trained tensors", "norm.weight"], adapter_of(tensors=trained))


def test_a_hostile_record(tmp_path, base):
    tensors = safetensors.read(base / "model.safetensors").tensors
    folder = tmp_path / "hostile"
    folder.mkdir()
    safetensors.write(
        folder / "model.safetensors",
        [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()],
        (tensor.data.data for tensor in tensors.values()),
        metadata={"vbfmt.merged": "[" * 100_000},
    )
    refused(folder, ["record of merged adapters", "vbfmt.merged"])


def test_an_adapter_of_another_model(base):
    refused(
        base,
        ["0 of the adapter's 1 modules are in the base", "h.0.c_attn"],
        adapter_of({"h.0.c_attn": (48, 16)}),
    )


def test_a_base_that_has_the_adapter_already(tmp_path, base):
    merge.write(merge.plan(adapter_of(), base), tmp_path / "out")
    refused(tmp_path / "out", ["merged into the base already", vbfmt.digest(adapter_of())])


@pytest.mark.parametrize("lost", ["vbfmt_merge.json", "metadata"])
def test_either_record_of_a_merge_is_enough(tmp_path, base, lost):
    out = tmp_path / "out"
    merge.write(merge.plan(adapter_of(), base), out)
    if lost == "metadata":
        tensors = {
            name: tensor_of(tensor.numpy().copy())
            for name, tensor in safetensors.read(out / "model.safetensors").tensors.items()
        }
        (out / "model.safetensors").unlink()
        write_tensors(out / "model.safetensors", tensors)
    else:
        (out / lost).unlink()
    refused(out, ["merged into the base already"])


def test_a_second_adapter_may_be_merged_and_both_are_recorded(tmp_path, base):
    merge.write(merge.plan(adapter_of(seed=1), base), tmp_path / "one")
    merge.write(merge.plan(adapter_of(seed=2), tmp_path / "one"), tmp_path / "two")
    digests = [vbfmt.digest(adapter_of(seed=seed)) for seed in (1, 2)]
    record = json.loads((tmp_path / "two" / "vbfmt_merge.json").read_text())
    assert [entry["digest"] for entry in record["adapters"]] == digests
    for seed in (1, 2):
        refused(tmp_path / "two", ["already"], adapter_of(seed=seed))


def test_a_repeated_adapter(base):
    refused(base, ["given twice"], [adapter_of(), adapter_of()], errors.TargetError)


def test_two_heads_with_one_name(base):
    heads = [adapter_of(seed=n, tensors={"score.weight": tensor_of([n])}) for n in (1, 2)]
    refused(base, ["two adapters", "score.weight"], heads)


def test_adapters_with_different_shapes(base):
    refused(base, ["do not fit each other", "layers.0.q"], [
        adapter_of(),
        adapter_of({"model.layers.0.q": (24, 16)}),
    ])  # fmt: skip


@pytest.mark.parametrize("weights", [[1.0, 2.0], [float("nan")], [float("inf")]])
def test_weights_that_do_not_fit(base, weights):
    refused(base, ["`weights`"], kind=errors.TargetError, weights=weights)


def test_a_folder_that_holds_an_adapter(base):
    (base / "adapter_config.json").write_text("{}")
    refused(base, ["holds an adapter", "adapter_config.json"])


@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, {}])
def test_a_head_that_is_tied_to_the_embedding(tmp_path, config):
    embedding = weights_of()["model.embed.weight"]
    folder = save_base(
        tmp_path / "base",
        weights_of() | {"lm_head.weight": embedding},
        config={"vocab_size": 32, **config},
    )
    refused(folder, ["two tied tensors", "lm_head.weight", "model.embed.weight"], adapter_of(
        {"lm_head": (32, 24), "model.layers.0.q": (16, 24)}
    ))  # fmt: skip


def test_a_trained_head_for_a_base_that_ties_it(tmp_path):
    folder = save_base(
        tmp_path / "base", weights_of(), config={"vocab_size": 32, "tie_word_embeddings": True}
    )
    adapter = adapter_of(tensors={"lm_head.weight": tensor_of(np.ones((32, 24)))})
    refused(folder, ["two tied tensors", "lm_head.weight", "untie"], adapter)


def test_lora_on_a_tied_head_that_the_base_does_not_hold(tmp_path):
    """Earlier, it was reported as an adapter of another model."""
    folder = save_base(
        tmp_path / "base", weights_of(), config={"vocab_size": 32, "tie_word_embeddings": True}
    )
    adapter = adapter_of({"lm_head": (32, 24), "model.layers.0.q": (16, 24)})
    refused(folder, ["two tied tensors", "lm_head", "tied to model.embed.weight"], adapter)


def test_a_trained_embedding_of_a_base_whose_config_does_not_mention_tying(tmp_path):
    """transformers ties unless the config says otherwise, so the head would change too."""
    adapter = adapter_of(tensors={"model.embed.weight": tensor_of(np.ones((32, 24)))})
    folder = save_base(tmp_path / "base", weights_of(), config={"vocab_size": 32})
    refused(folder, ["two tied tensors", "model.embed", "no tie_word_embeddings"], adapter)
    head = {"lm_head.weight": tensor_of(np.ones((32, 24)))}
    untied = save_base(tmp_path / "untied", weights_of() | head, config={"vocab_size": 32})
    assert merge.plan(adapter, untied).layout.replaced == ("model.embed.weight",)


def test_a_trained_embedding_of_a_classifier_has_no_head_to_be_tied_to(tmp_path):
    adapter = adapter_of(
        tensors={"model.embed.weight": tensor_of(np.ones((32, 24)))},
        config='{"task_type":"SEQ_CLS"}',
    )
    folder = save_base(tmp_path / "base", weights_of(), config={"vocab_size": 32})
    assert merge.plan(adapter, folder).layout.replaced == ("model.embed.weight",)


def test_an_untied_head_is_merged(tmp_path):
    head = {"lm_head.weight": tensor_of(np.ones((32, 24)))}
    folder = save_base(tmp_path / "base", weights_of() | head, config={"vocab_size": 32})
    plan = merge.plan(adapter_of({"lm_head": (32, 24)}), folder)
    assert plan.layout.applied == 1


def test_an_unknown_dtype(base):
    refused(
        base, ["unknown dtype", "found int8", "bfloat16"], kind=errors.TargetError, dtype="int8"
    )


def test_an_integer_weight(tmp_path):
    name = "model.layers.0.q.weight"
    integers = vbfmt.Tensor.of(np.ones(weights_of()[name].shape, np.int8))
    folder = save_base(tmp_path / "base", {**weights_of(), name: integers})
    refused(folder, ["the base is quantized", name, "I8"])
    booleans = vbfmt.Tensor.of(np.ones(weights_of()[name].shape, np.bool_))
    folder = save_base(tmp_path / "other", {**weights_of(), name: booleans})
    refused(folder, ["the tensor is not a weight", name])


def test_two_modules_for_one_weight(base):
    from vbfmt.converters.merge import layout
    from vbfmt.converters.names.locations import Locations
    from vbfmt.converters.names.rule import Rule

    adapter = adapter_of({"model.layers.0.q": (16, 24), "model.layers.0.k": (16, 24)})
    model = merge.base.read(base)
    two, one = adapter.modules
    name = f"{one.name}.weight"
    for second in (Block(name), Block(name, np.arange(1), np.arange(1), np.arange(1))):
        blocks = {module.name: (Block(f"{module.name}.weight"),) for module in adapter}
        blocks[two.name] = (second,)
        with pytest.raises(errors.SourceError, match=f"two modules of the adapter.*{name}"):
            layout._touched(model, adapter, Locations(blocks, {}, {}, {}, Rule()))


def test_two_outputs_with_one_name(base):
    from vbfmt.converters.merge.plan import _require_distinct

    with pytest.raises(errors.SourceError, match="two output files would have the same name.*: x"):
        _require_distinct(["x", "y", "x"], merge.base.read(base))


def test_a_new_head_of_a_base_without_an_embedding_has_nothing_to_be_tied_to(tmp_path):
    tensors = {n: t for n, t in weights_of().items() if n != "model.embed.weight"}
    base = save_base(tmp_path / "base", tensors, config={"vocab_size": 32})
    head = tensor_of(np.ones((32, 24)))
    plan = merge.plan(adapter_of(tensors={"lm_head.weight": head}), base)
    assert plan.layout.added == ("lm_head.weight",)


def test_a_tensor_that_is_replaced_whole_and_in_part(sharded, monkeypatch):
    norm = {"model.norm.weight": tensor_of(np.ones(24))}
    monkeypatch.setattr(layout.converted, "tensors", lambda *_: norm)
    refused(
        sharded,
        ["two trained tensors replace one tensor of the base", "model.norm.weight"],
        adapter_of(tensors=norm),
    )
