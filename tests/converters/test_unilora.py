"""PEFT's Uni-LoRA checkpoints."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft", minversion="0.20")

from peft import PeftModel, UniLoraConfig, get_peft_model  # noqa: E402

from tests.conftest import warned  # noqa: E402
from tests.converters import models  # noqa: E402
from tests.tensor_files import write_tensors  # noqa: E402
from vbfmt import Tensor, dumps, errors, loads  # noqa: E402
from vbfmt.converters import lora, open_source, read, unilora  # noqa: E402

TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}


def trained(kind, folder, *, save_indices, length=50):
    model = models.base(kind, folder)
    torch.manual_seed(1)
    config = UniLoraConfig(
        r=3,
        theta_d_length=length,
        proj_seed=7,
        target_modules=TARGETS[kind],
        fan_in_fan_out=kind == "gpt2",
        save_indices=save_indices,
        init_theta_d_bound=2.0,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config).eval()


@pytest.fixture(params=["llama", "gpt2"])
def kind(request):
    return request.param


@pytest.mark.parametrize("save_indices", [True, False], ids=["stored indices", "seed"])
def test_the_expanded_lora_gives_pefts_outputs(tmp_path, kind, save_indices):
    model = trained(kind, str(tmp_path), save_indices=save_indices)
    model.save_pretrained(tmp_path / "uni")
    assert open_source(tmp_path / "uni").reader.name == "unilora"
    adapter = read(tmp_path / "uni", base=tmp_path / "base")
    assert (adapter.b, adapter.k, adapter.h) == (1, 1, 50)
    lora.write(adapter, tmp_path / "lora")
    loaded = PeftModel.from_pretrained(
        models.base(kind, str(tmp_path)), str(tmp_path / "lora")
    ).eval()
    with torch.no_grad():
        expected, found = models.outputs(model), models.outputs(loaded)
        without = models.outputs(models.base(kind, str(tmp_path)))
    assert (expected - found).abs().max() <= 2e-6 * expected.abs().max()
    assert (expected - without).abs().max() > 0.01 * expected.abs().max()


def test_factors_are_bit_for_bit_those_of_peft(tmp_path, kind):
    model = trained(kind, str(tmp_path), save_indices=False)
    model.save_pretrained(tmp_path / "uni")
    adapter = read(tmp_path / "uni", base=tmp_path / "base")
    for name, layer in model.base_model.model.named_modules():
        if hasattr(layer, "unilora_indices_A"):
            a, b = (f.detach().numpy() for f in layer._get_lora_matrices("default"))
            found_a, found_b = adapter.factors(name)
            np.testing.assert_array_equal(found_a, a)
            np.testing.assert_array_equal(found_b, b)


def test_the_seed_and_the_stored_indices_give_the_same_adapter(tmp_path, kind):
    trained(kind, str(tmp_path), save_indices=True).save_pretrained(tmp_path / "one")
    trained(kind, str(tmp_path), save_indices=False).save_pretrained(tmp_path / "two")
    one, two = (read(tmp_path / name, base=tmp_path / "base") for name in ("one", "two"))
    assert dumps(one) == dumps(two)
    assert loads(dumps(one)) == two


def test_a_seed_alone_needs_the_base(tmp_path, kind):
    trained(kind, str(tmp_path), save_indices=False).save_pretrained(tmp_path / "uni")
    with pytest.raises(errors.SourceError, match="seed 7; give the base model's folder.*`base="):
        read(tmp_path / "uni")
    with pytest.raises(errors.SourceError, match=r"expected a config\.json"):
        read(tmp_path / "uni", base=tmp_path)


def test_the_size_of_the_packed_indices_is_reported(tmp_path, kind):
    trained(kind, str(tmp_path), save_indices=True).save_pretrained(tmp_path / "uni")
    with warned() as messages:
        adapter = read(tmp_path / "uni")
    assert messages == [
        f"Uni-LoRA has an index for every LoRA parameter: {200 + adapter.N} bytes packed, "
        f"200 as θ and a seed, {4 * adapter.N} as LoRA in float32"
    ]


@pytest.mark.parametrize("save_indices", [True, False], ids=["stored indices", "seed"])
def test_a_trained_head_is_read_and_written(tmp_path, save_indices):
    """Earlier, every classifier was refused because of its head."""
    base = models.base("bert", str(tmp_path))
    config = UniLoraConfig(
        r=2,
        theta_d_length=50,
        target_modules=["query", "value"],
        save_indices=save_indices,
        init_theta_d_bound=2.0,
        task_type="SEQ_CLS",
    )
    torch.manual_seed(1)
    model = get_peft_model(base, config).eval()
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data.normal_()
    model.save_pretrained(tmp_path / "uni")
    adapter = loads(dumps(read(tmp_path / "uni", base=tmp_path / "base")))
    assert set(adapter.tensors) == {"classifier.bias", "classifier.weight"}
    lora.write(adapter, tmp_path / "lora")
    loaded = models.loaded("bert", str(tmp_path), str(tmp_path / "lora"))
    with torch.no_grad():
        expected, found = models.outputs(model), models.outputs(loaded)
    assert (expected - found).abs().max() <= 2e-6 * expected.abs().max()


def arrays(**changes):
    result = {
        "base_model.unilora_theta_d": np.ones(5, np.float32),
        "base_model.model.q.unilora_indices_A": np.array([[0, 1], [2, 3]], np.int64),
        "base_model.model.q.unilora_indices_B": np.array([[0, 1], [2, 4]], np.int64),
        "base_model.model.q.unilora_scales_A": np.ones((2, 2), np.float32),
        "base_model.model.q.unilora_scales_B": np.ones((2, 2), np.float32),
    }
    for key, value in changes.items():
        name = next(known for known in result if known.endswith(key))
        result[name] = value
        if value is None:
            del result[name]
    return result


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices_A": np.full((2, 2), 5)}, "index outside of θ"),
        ({"indices_A": np.full((2, 2), -1)}, "index outside of θ"),
        ({"indices_B": np.zeros((2, 3), np.int64)}, "ranks disagree"),
        ({"indices_A": np.zeros((0, 2), np.int64)}, "incomplete checkpoint: q, indices A"),
        ({"indices_B": None}, "incomplete checkpoint: q, indices B"),
        ({"scales_B": None}, "incomplete checkpoint.*scales B"),
        ({"scales_A": np.array([[1, 2], [1, 1]], np.float32)}, "two scales"),
        ({"theta_d": np.ones((5, 1), np.float32)}, "not a vector"),
        (
            {"theta_d": np.ones(65537, np.float32)},
            "16-bit indices.*65537.*at most 65536",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path, changes, message):
    path = tmp_path / "adapter_model.safetensors"
    write_tensors(path, {k: Tensor.of(v) for k, v in arrays(**changes).items()})
    with pytest.raises(errors.SourceError, match=message.replace("checkpoint: ", "checkpoint.*")):
        read(path)


def test_the_bases_weight_of_an_adapted_head_is_left_out(tmp_path):
    """PEFT saves it beside the adapter, and does not train it."""
    path = tmp_path / "adapter_model.safetensors"
    extras = {
        "base_model.model.q.base_layer.weight": np.ones((2, 2), np.float32),
        "base_model.model.norm.weight": np.ones(2, np.float32),
    }
    write_tensors(path, {key: Tensor.of(value) for key, value in (arrays() | extras).items()})
    with warned() as messages:
        assert list(read(path).tensors) == ["norm.weight"]
    assert messages[0] == (
        "weights of the base model were left out: base_model.model.q.base_layer.weight"
    )


def test_a_vector_that_float32_would_round_away_is_refused(tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    small = arrays(theta_d=np.full(5, 1e-50))
    write_tensors(path, {key: Tensor.of(value) for key, value in small.items()})
    with pytest.raises(errors.ContentError, match="too small for float32.*theta_d"):
        read(path)


def test_two_adapters_in_one_file_are_refused(tmp_path):
    both = arrays()
    for key in [key for key in both if "indices" in key or "scales" in key]:
        both[f"{key}.second"] = both[key]
    path = tmp_path / "adapter_model.safetensors"
    write_tensors(path, {k: Tensor.of(v) for k, v in both.items()})
    with pytest.raises(errors.SourceError, match="one tensor under two keys"):
        read(path)


def test_empty_indices_that_claim_an_impossible_size_are_refused(tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    tensors = {key: Tensor.of(value) for key, value in arrays().items()}
    huge = Tensor("I64", (0, 2**63), np.empty(0, np.uint8))
    tensors["base_model.model.q.unilora_indices_A"] = huge
    write_tensors(path, tensors)
    with pytest.raises(errors.SourceError, match="incomplete checkpoint"):
        read(path)


def changed(folder, **values):
    """Change values of a checkpoint's config."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *(("r", value, "not a size") for value in (0, "3", None, True, 3.0, [3])),
        ("r", 10**9, "rank is out of range"),
        *(("theta_d_length", value, "not a size") for value in (50.0, None, True, "50")),
        ("theta_d_length", 51, "the config contradicts θ"),
        *(
            ("proj_seed", value, "not a seed")
            for value in (None, -1, 1.5, "7", True, [1, 2], {}, 1 << 64)
        ),
    ],
)
def test_settings_that_determine_the_indices_are_checked(tmp_path, key, value, message):
    """Earlier, with a seed of null, NumPy made different indices each time."""
    trained("llama", str(tmp_path), save_indices=False).save_pretrained(tmp_path / "uni")
    changed(tmp_path / "uni", **{key: value})
    with pytest.raises(errors.SourceError, match=message):
        read(tmp_path / "uni", base=tmp_path / "base")


@pytest.mark.parametrize(("key", "value"), [("r", 4), ("r", "3"), ("theta_d_length", 49)])
def test_stored_indices_and_config_agree(tmp_path, key, value):
    trained("llama", str(tmp_path), save_indices=True).save_pretrained(tmp_path / "uni")
    changed(tmp_path / "uni", **{key: value})
    with pytest.raises(errors.SourceError, match=r"ranks disagree|not a size|contradicts"):
        read(tmp_path / "uni")


def test_indices_that_exceed_memory_are_not_created(tmp_path, monkeypatch):
    trained("llama", str(tmp_path), save_indices=False).save_pretrained(tmp_path / "uni")
    monkeypatch.setattr(unilora, "_MOST_PARAMETERS", 1000)
    with pytest.raises(errors.SourceError, match="indices for too many parameters"):
        read(tmp_path / "uni", base=tmp_path / "base")


def test_a_regular_expression_selects_the_same_modules_as_in_peft(tmp_path):
    trained("llama", str(tmp_path), save_indices=False).save_pretrained(tmp_path / "uni")
    names = [module.name for module in read(tmp_path / "uni", base=tmp_path / "base")]
    changed(tmp_path / "uni", target_modules=r".*\.(q_proj|v_proj|down_proj)")
    again = read(tmp_path / "uni", base=tmp_path / "base")
    assert [module.name for module in again] == names


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules"])
@pytest.mark.timeout(60)
def test_a_hostile_regular_expression_is_refused(tmp_path, key):
    trained("llama", str(tmp_path), save_indices=False).save_pretrained(tmp_path / "uni")
    changed(tmp_path / "uni", **{key: r"(\w|\w\w|\w\.|\.)+[A-Z]"})
    with pytest.raises(errors.VbfmtError, match="takes too long"):
        read(tmp_path / "uni", base=tmp_path / "base")


@pytest.mark.parametrize("key", ["num_hidden_layers", "encoder_layers"])
def test_a_base_of_too_many_layers_is_not_built(tmp_path, key):
    trained("llama", str(tmp_path), save_indices=False).save_pretrained(tmp_path / "uni")
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: 20_000}))
    with pytest.raises(errors.SourceError, match="too many layers"):
        read(tmp_path / "uni", base=tmp_path / "base")


def test_a_base_that_peft_cannot_use_is_one_error(tmp_path):
    trained("llama", str(tmp_path), save_indices=False).save_pretrained(tmp_path / "uni")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "model_type": "odd"}))
    with pytest.raises(errors.SourceError, match="PEFT cannot build the adapter on this base"):
        read(tmp_path / "uni", base=tmp_path / "base")


def test_a_k_other_than_1_is_refused(tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    write_tensors(path, {k: Tensor.of(v) for k, v in arrays().items()})
    with pytest.raises(errors.SourceError, match="Uni-LoRA has k = 1 in .*: `topk`: found 2"):
        read(path, topk=2)


def test_a_second_vector_is_refused(tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    both = arrays()
    theta = next(key for key in both if "theta" in key)
    both[f"{theta}.second"] = both[theta]
    write_tensors(path, {k: Tensor.of(v) for k, v in both.items()})
    with pytest.raises(errors.SourceError, match="not exactly one Uni-LoRA vector"):
        read(path)
