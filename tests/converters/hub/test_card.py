"""Model cards, as huggingface_hub reads them."""

from __future__ import annotations

import dataclasses
import sys

import pytest

huggingface_hub = pytest.importorskip("huggingface_hub")

from spec.golden.make import worked_example  # noqa: E402
from tests.converters.merge.folders import adapter_of, save_base, weights_of  # noqa: E402
from vbfmt import errors, save  # noqa: E402
from vbfmt.converters import lora, merge, mlx, peft  # noqa: E402
from vbfmt.converters.hub import card  # noqa: E402

DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def adapter():
    return dataclasses.replace(
        worked_example(), base_model="owner/base", config='{"task_type":"CAUSAL_LM"}'
    )


def parsed(text):
    read = huggingface_hub.ModelCard(text.decode())
    return read.data.to_dict(), read.text


def test_the_card_of_a_packed_file(adapter):
    data, text = parsed(card.packed(adapter, "x.vblora", DIGEST))
    assert data == {
        "base_model": "owner/base",
        "base_model_relation": "adapter",
        "library_name": "vbfmt",
        "pipeline_tag": "text-generation",
        "tags": ["vb-lora"],
    }
    assert f"vbfmt verify x.vblora --digest {DIGEST}" in text
    assert "a bank of 3 vectors of length 2, 2 of them" in text


@pytest.mark.parametrize(
    ("text", "library", "tags"),
    [
        (lambda a: card.lora(a, "peft"), "peft", ["lora", "vb-lora"]),
        (lambda a: card.lora(a, "mlx"), "mlx", ["lora", "vb-lora"]),
        (card.vblora, "peft", ["vb-lora"]),
    ],
)
def test_the_cards_of_folders(adapter, text, library, tags):
    data, _ = parsed(text(adapter))
    assert (data["library_name"], data["tags"]) == (library, tags)
    assert (data["base_model"], data["base_model_relation"]) == ("owner/base", "adapter")


@pytest.mark.parametrize(
    "name",
    [None, "/home/me/base", "../base", "a: b\n---", "x/y/z", "`$(id)`", "C:\\base", "x" * 99],
)
def test_only_names_that_are_valid_on_the_hub_are_base_models(adapter, name):
    text = card.lora(dataclasses.replace(adapter, base_model=name), "peft")
    data, _ = parsed(text)
    assert "base_model" not in data
    assert "base_model_relation" not in data
    assert name is None or name.encode() not in text


@pytest.mark.parametrize("name", ["gpt2", "owner/base", "yes/no", "1/2"])
def test_names_are_escaped(adapter, name):
    data, _ = parsed(card.vblora(dataclasses.replace(adapter, base_model=name)))
    assert data["base_model"] == name


def test_writers_add_the_card_to_the_folder(tmp_path):
    adapter = adapter_of()
    lora.write(adapter, tmp_path / "lora", card=b"card")
    mlx.write(adapter, tmp_path / "mlx", card=b"card")
    peft.write(adapter, tmp_path / "peft", card=b"card")
    for name in ("lora", "mlx", "peft"):
        assert (tmp_path / name / "README.md").read_bytes() == b"card"


def test_the_card_of_a_merged_model_replaces_that_of_the_base(tmp_path):
    adapter = dataclasses.replace(adapter_of(), base_model="owner/base")
    save(adapter, tmp_path / "x.vblora")
    base = save_base(tmp_path / "base", weights_of(), side_files={"README.md": b"the base's"})
    merge.write(merge.plan(adapter, base), tmp_path / "plain")
    assert (tmp_path / "plain" / "README.md").read_bytes() == b"the base's"
    merge.write(merge.plan(adapter, base, card=True), tmp_path / "out")
    data, text = parsed((tmp_path / "out" / "README.md").read_bytes())
    assert data == {
        "base_model": "owner/base",
        "library_name": "transformers",
        "tags": ["vb-lora"],
    }
    assert "sha256:" in text
    merge.write(merge.plan(adapter, base), tmp_path / "out", overwrite=True)


def test_a_card_without_huggingface_hub_is_one_error(adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'vbfmt\[hub\]'"):
        card.vblora(adapter)
