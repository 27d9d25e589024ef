"""The base model, built without its weights to find the modules that PEFT adapts."""

from __future__ import annotations

import json
import sys

import pytest

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

from tests.architectures import tiny  # noqa: E402
from vbfmt import errors  # noqa: E402
from vbfmt.converters.peft import skeleton  # noqa: E402

NAMES = ["layers.0.q_proj", "layers.0.k_proj", "layers.1.q_proj", "vision.layers.0.q_proj"]


@pytest.fixture
def base(tmp_path):
    config = tiny.config(transformers.LlamaConfig)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("task", "found"),
    [
        ("SEQ_CLS", "BertForSequenceClassification"),
        ("CAUSAL_LM", "BertLMHeadModel"),
        ("FEATURE_EXTRACTION", None),
        (None, None),
    ],
)
def test_every_task_type_of_peft_has_a_class_in_transformers(task, found):
    assert skeleton.class_for_task({"model_type": "bert"}, task) == found


@pytest.mark.parametrize("kind", ["no-such-model", None, 3])
def test_an_unknown_model_type_has_no_class(kind):
    assert skeleton.class_for_task({"model_type": kind}, "CAUSAL_LM") is None


def test_a_model_type_without_a_class_for_the_task_has_none():
    assert skeleton.class_for_task({"model_type": "vit"}, "CAUSAL_LM") is None


def test_without_a_task_the_bases_own_class_is_built(base):
    pytest.importorskip("peft", minversion="0.14", reason="PEFT before 0.14 allocates the adapter")
    config = {"peft_type": "LORA", "target_modules": ["lm_head", "q_proj"]}
    found = skeleton.shapes_in_order(config, base)
    assert list(found)[-1] == "lm_head"
    assert next(iter(found)) == "model.layers.0.self_attn.q_proj"


def test_without_peft_the_error_names_the_extra(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(errors.MissingExtraError, match=r"needs PEFT.*vbfmt\[peft\]"):
        skeleton.shapes_in_order({}, base)


def test_a_pattern_is_replaced_by_the_names_that_it_matches():
    settings = {"target_modules": r"layers\.\d\.q_proj", "exclude_modules": "all-linear"}
    assert skeleton._without_patterns(settings, NAMES[:3]) == {
        "target_modules": ["layers.0.q_proj", "layers.1.q_proj"]
    }


def test_a_pattern_that_matches_nothing_is_refused_unless_it_excludes():
    with pytest.raises(errors.SourceError, match="no module of the base is a target: target_mod"):
        skeleton._without_patterns({"target_modules": "x"}, NAMES)
    assert skeleton._without_patterns({"exclude_modules": "x"}, NAMES) == {"exclude_modules": []}


def test_a_pattern_that_no_list_can_replace_is_refused():
    """In a list, ``layers.0.q_proj`` would also match the end of a name in the vision tower."""
    with pytest.raises(errors.SourceError, match=r"does not match vision\.layers\.0\.q_proj"):
        skeleton._without_patterns({"target_modules": r"layers\.0\.q_proj"}, NAMES)


@pytest.mark.parametrize("patterns", ["layers", ["layers", "h"]])
def test_a_plain_name_of_a_list_of_layers_is_kept(patterns):
    assert skeleton._without_patterns({"layers_pattern": patterns}, NAMES) == {}


@pytest.mark.parametrize("patterns", ["(a+)+", ["layers", "a*"], [3]])
def test_a_pattern_of_a_list_of_layers_is_refused(patterns):
    """PEFT puts it into a regular expression of its own."""
    with pytest.raises(errors.SourceError, match="not a plain module name"):
        skeleton._without_patterns({"layers_pattern": patterns}, NAMES)


def test_a_config_that_is_not_an_object_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(errors.SourceError):
        skeleton.shapes_in_order({}, tmp_path)
