"""The config of a base to which a head was added."""

from __future__ import annotations

import pytest

from tests.converters.merge.folders import adapter_of
from vbfmt.converters.merge.config import changed


def class_of(name, task, added):
    config, notices = changed(
        {"architectures": [name]}, adapter_of(config=f'{{"task_type":"{task}"}}'), None, added
    )
    return config["architectures"][0], notices


@pytest.mark.parametrize(
    ("name", "task", "added", "expected"),
    [
        ("BertModel", "QUESTION_ANS", ["qa_outputs.weight"], "BertForQuestionAnswering"),
        ("T5EncoderModel", "CAUSAL_LM", ["qa_outputs.weight"], "T5EncoderModel"),
        ("MyForTokenClassification2", "TOKEN_CLS", ["tags"], "MyForTokenClassification2"),
        ("MyEncoderForTokenClassification", "TOKEN_CLS", ["tags"], None),
    ],
)
def test_the_class_with_the_head_is_named_if_it_can_be_derived(name, task, added, expected):
    found, notices = class_of(name, task, added)
    assert found == (expected or name)
    doubt = [each for each in notices if "may not have" in each]
    assert bool(doubt) == (expected == name)
    assert any(f"the base does not have {added[0]}" in each for each in notices)
