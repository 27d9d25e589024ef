"""The authors' whole-model checkpoints."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from peft import PeftModel  # noqa: E402

from tests.conftest import warned  # noqa: E402
from tests.converters import authors  # noqa: E402
from vbfmt import dumps, errors, loads  # noqa: E402
from vbfmt.converters import lora, open_source, read  # noqa: E402

IDS = torch.arange(2, 26).reshape(2, 12)


@pytest.fixture(scope="module")
def model():
    return authors.model()


@pytest.fixture
def checkpoint(tmp_path, model):
    return authors.saved(tmp_path / "nlu", model)


def layers_of(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, authors.VBLinear)}


def test_the_layout_is_recognized(checkpoint):
    assert open_source(checkpoint).reader.name == "nlu"
    assert open_source(checkpoint / "pytorch_model.bin").reader.name == "nlu"


def test_every_module_has_the_delta_of_the_authors_layer(model, checkpoint):
    """ΔW in nn.Linear's convention is (A·B)ᵀ; some modules here have in/b == rank, some not."""
    adapter = read(checkpoint)
    assert {module.in_features // adapter.b == module.rank for module in adapter} == {True, False}
    require_own_deltas(adapter, model)


def test_the_same_layer_in_a_deberta(tmp_path):
    model = authors.deberta()
    checkpoint = authors.saved(tmp_path / "nlu", model)
    assert open_source(checkpoint).reader.name == "nlu"
    adapter = read(checkpoint)
    require_own_deltas(adapter, model)
    assert all(module.name.startswith("deberta.encoder.layer.") for module in adapter)
    heads = {f"{n}.{leaf}" for n in ("classifier", "pooler.dense") for leaf in ("bias", "weight")}
    assert set(adapter.tensors) == heads


def require_own_deltas(adapter, model):
    layers = layers_of(model)
    assert [module.name for module in adapter] == sorted(layers)
    for name, layer in layers.items():
        a, b = (factor.detach().double().numpy() for factor in layer.double().factors())
        layer.float()
        error = np.abs(adapter.delta(name) - (a @ b).T).max()
        # float32 rounding of both factors (k + 1 roundings each) and of the product of rank terms
        largest = np.abs(adapter.bank).max()
        assert error <= 2 * (authors.K + 1 + authors.RANK) * authors.RANK * 2.0**-24 * largest**2


def test_the_wrong_layout_gives_other_weights(model, tmp_path):
    """If all modules are square, no check can detect it. Therefore the layout is never guessed."""
    square = authors.saved(tmp_path / "square", authors.model("query,value"))
    right = read(square)
    forget_copies(square)
    wrong = read(square, layout="algorithm1", topk=authors.K)
    assert wrong.modules == right.modules
    for module in right:
        difference = np.abs(wrong.delta(module.name) - right.delta(module.name)).max()
        assert difference > 0.1 * np.abs(right.delta(module.name)).max()


def forget_copies(folder):
    """Remove the copies of tied tensors, as if they were saved once."""
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    kept = {
        key: value
        for key, value in state.items()
        if key == "roberta.vector_bank" or not key.endswith(".vector_bank")
    }
    torch.save(kept, folder / "pytorch_model.bin")


def test_the_wrong_layout_is_refused_if_a_shape_shows_it(checkpoint):
    with pytest.raises(errors.SourceError, match="not exactly one vector bank"):
        read(checkpoint, layout="algorithm1", topk=authors.K)


def test_the_head_is_kept_and_the_base_is_dropped(model, checkpoint):
    with warned() as messages:
        adapter = read(checkpoint)
    assert sorted(adapter.tensors) == sorted(
        f"classifier.{n}" for n in model.classifier.state_dict()
    )
    assert adapter.base_model == "roberta-tiny"
    assert "tensors of the base model were left out; the trained head" in messages[0]
    assert len(dumps(adapter)) < 40_000
    assert loads(dumps(adapter)) == adapter


def test_as_lora_it_gives_the_same_outputs_through_peft(model, checkpoint, tmp_path):
    lora.write(read(checkpoint), tmp_path / "lora")
    loaded = PeftModel.from_pretrained(authors.base_model(), str(tmp_path / "lora")).eval()
    with torch.no_grad():
        expected, found = model(IDS).logits, loaded(IDS).logits
        without = authors.base_model()(IDS).logits
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()
    assert (expected - without).abs().max() > 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    "config",
    [
        {"num_vectors": [authors.H], "vector_length": [authors.B]},
        {"topk": [authors.K], "rank": [authors.RANK]},
    ],
)
def test_sizes_may_be_lists_of_one(model, tmp_path, config):
    plain = authors.saved(tmp_path / "plain", model)
    listed = authors.saved(tmp_path / "listed", model, **config)
    assert read(plain) == read(listed)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rank": 8}, "the config contradicts the tensors .* rank: found 8 in config.json, .* 4"),
        ({"num_vectors": 90}, "num_vectors: found 90"),
        ({"rank": {}}, "rank: found {}"),
        ({"topk": 2}, "sources disagree on k"),
        ({"topk": None}, "give it: `topk=K`"),
        ({"num_hidden_layers": 3}, "incomplete checkpoint .*: found in 2 layers, expected 3"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(model, tmp_path, config, message):
    folder = authors.saved(tmp_path / "x", model, **config)
    topk = 3 if config == {"topk": 2} else None
    with pytest.raises(errors.SourceError, match=message.replace(" .* ", ".*")):
        read(folder, topk=topk)


def test_a_copy_of_the_bank_that_is_not_tied_is_refused(model, tmp_path):
    folder = authors.saved(tmp_path / "x", model)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    key = "roberta.encoder.layer.1.output.dense.vector_bank"
    state[key] = state[key].clone()
    state[key][0, 0] += 1
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(errors.SourceError, match=f"not the shared one.*{key}: found other values"):
        read(folder)


def test_a_module_with_only_one_factor_is_refused(model, tmp_path):
    folder = authors.saved(tmp_path / "x", model)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    key = "roberta.encoder.layer.0.attention.self.query.logits_B"
    del state[key]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(errors.SourceError, match=f"incomplete checkpoint.*{key}: found nothing"):
        read(folder)


class Bomb:
    def __reduce__(self):
        return os.system, ("touch boom",)


def test_code_in_the_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"roberta.vector_bank": Bomb()}))
    with pytest.raises(errors.SourceError, match="refused"):
        read(tmp_path)
    assert not (tmp_path / "boom").exists()


def test_a_second_bank_outside_of_the_modules_is_refused(model, tmp_path):
    folder = authors.saved(tmp_path / "x", model)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state["other.vector_bank"] = state["roberta.vector_bank"]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(errors.SourceError, match="not exactly one vector bank apart from"):
        read(folder)
