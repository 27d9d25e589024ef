"""The rule that finds the weight of each module by name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.converters.merge.folders import adapter_of, weights_of
from vbfmt import errors
from vbfmt.converters import names
from vbfmt.converters.names.rule import Rule, find_rule

LAYERS = [f"layers.{n}.{leaf}" for n in range(12) for leaf in ("q_proj", "v_proj")]


def weights(prefix: str) -> list[str]:
    return [f"{prefix}{name}.weight" for name in LAYERS] + [f"{prefix}norm.weight", "bias"]


def modules(prefix: str) -> list[str]:
    return [prefix + name for name in LAYERS]


@pytest.mark.parametrize(
    ("adapter", "base", "rule"),
    [
        ("", "", Rule()),
        ("model.", "model.", Rule()),
        ("", "bert.", Rule(add="bert.")),
        ("bert.", "", Rule(drop="bert.")),
        ("model.language_model.", "", Rule(drop="model.language_model.")),
        ("", "any.thing.", Rule(add="any.thing.")),
    ],
)
def test_a_prefix_is_found(adapter, base, rule):
    found = find_rule(modules(adapter), weights(base))
    assert found == rule
    assert [found(name) for name in modules(adapter)] == modules(base)


def test_identical_names_are_preferred_to_a_prefix():
    assert find_rule(modules("m."), weights("m.") + weights("") + weights("x.m.")) == Rule()


def test_a_rule_must_match_every_module():
    base = [name for name in weights("bert.") if "layers.7.v_proj" not in name]
    with pytest.raises(errors.SourceError) as caught:
        find_rule(modules(""), base)
    message = str(caught.value)
    assert "23 of the adapter's 24 modules are in the base" in message
    assert "no weight for layers.7.v_proj (nearest: bert.layers." in message
    assert "nothing was written" in message


def test_unmatched_names_are_listed_with_the_nearest():
    with pytest.raises(errors.SourceError, match=r"^0 of the adapter's 24 modules .* and 19 more"):
        find_rule([f"h.{n}.attn.{leaf}" for n in range(12) for leaf in "qv"], weights("model."))


def test_two_matching_parts_of_a_model_are_refused():
    with pytest.raises(errors.SourceError, match=r"several parts .*'text.'.*'vision.'"):
        find_rule(modules(""), weights("text.") + weights("vision."))


def test_a_prefix_ends_at_a_dot():
    with pytest.raises(errors.SourceError):
        find_rule(["layers.0.q"], ["sublayers.0.q.weight"])


def test_a_rule_does_not_apply_to_names_without_its_prefix():
    assert Rule(drop="bert.")("classifier") is None


def test_a_part_of_a_model_can_be_selected():
    both = weights("text.") + weights("vision.")
    assert find_rule(modules(""), both, part="text.") == Rule(add="text.")
    with pytest.raises(errors.SourceError, match=r"in the part 'audio.' of the base"):
        find_rule(modules(""), both, part="audio.")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule(), "names are the same"),
        (Rule(add="model."), "the base's names begin with 'model.', the adapter's do not"),
        (Rule(drop="bert."), "the adapter's names begin with 'bert.', the base's do not"),
        (Rule(drop="bert.", mapped=True), "transformers maps the adapter's names to the base's"),
    ],
)
def test_the_description_of_a_rule(rule, words):
    assert str(rule) == words


def test_names_decide_where_the_model_of_transformers_has_no_such_weight(monkeypatch):
    """A model type that is not in the table may have the adapter's names."""
    monkeypatch.setattr(names.loaded_model, "build", lambda *_: object())

    def without(*_, **__):
        raise errors.SourceError("no weight")

    monkeypatch.setattr(names.locations, "in_loaded_model", without)
    found = names.locate(weights_of(), {"model_type": "somebodys"}, adapter_of())
    assert found.rule == Rule()
    assert found.modules["model.layers.0.q"][0].tensor == "model.layers.0.q.weight"


def test_one_prefix_leads_to_the_loaded_models_names():
    shapes = {"bert.layers.0.q.weight": (4, 8), "bert.layers.0.q.bias": (4,)}
    loaded = SimpleNamespace(
        shapes=shapes, renamed=lambda given: {name: (name, None) for name in given}
    )
    given = ["layers.0.q.weight", "layers.0.q.bias"]
    assert names.locations._targets(loaded, given) == {
        name: (f"bert.{name}", None) for name in given
    }
