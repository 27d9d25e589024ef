"""The JSON fields of every command are exactly those in the documentation."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.converters.merge.folders import adapter_of, save_base, weights_of
from tests.converters.test_peft import logits_form, write_folder
from vbfmt import cli, save
from vbfmt.errors import VbfmtError
from vbfmt.tensors import Tensor

PAGE = (ROOT / "docs" / "reference" / "json.md").read_text("utf-8")
OPEN = {"lost", "files", "tensors", "metadata", "parts", "removed"}
"""Objects whose keys are names from files; ``*`` stands for the name."""


def documented() -> dict[str, set[str]]:
    """Return the fields by section of the page."""
    sections = re.split(r"^## ", PAGE, flags=re.M)[1:]
    return {
        section.splitlines()[0].strip("` "): {
            field
            for row in re.findall(r"^\| (`.*?) \|", section, flags=re.M)
            for field in re.findall(r"`([^`]+)`", row)
        }
        for section in sections
    }


def fields(value: object, prefix: str = "") -> set[str]:
    """Return the paths of all fields: ``a``, ``a.b`` for both an object and a list of objects in
    a."""
    if isinstance(value, list):
        return {path for item in value for path in fields(item, prefix)}
    if not isinstance(value, dict):
        return set()
    found = set()
    for key, item in value.items():
        path = f"{prefix}{'*' if prefix.rstrip('.') in OPEN else key}"
        found |= {path} | fields(item, f"{path}.")
    return found


@pytest.fixture
def answers(vbfmt, tmp_path, monkeypatch):
    """Return a function that runs a command and returns the fields that it prints."""
    monkeypatch.chdir(tmp_path)
    save(adapter_of(), "x.vblora")
    write_folder(tmp_path / "checkpoint", logits_form())
    write_folder(tmp_path / "other", logits_form(seed=1))

    def call(*words: object, lines: bool = False) -> set[str]:
        out = vbfmt(*words, "--json").out
        return fields([json.loads(line) for line in out.splitlines()] if lines else json.loads(out))

    return call


def of_pack(call, vbfmt, tmp_path):
    return call("pack", "checkpoint", "-o", "y.vblora")


def of_unpack(call, vbfmt, tmp_path):
    return call("unpack", "x.vblora", "-o", "peft")


def of_expand(call, vbfmt, tmp_path):
    pytest.importorskip("safetensors", reason="the tests of LoRA need safetensors")
    from tests.converters.test_lora import wide_indices

    save(wide_indices(), "wide.vblora")
    checked = call("expand", "wide.vblora", "-o", "a", "--check", "tgi")
    return checked | call("expand", "x.vblora", "-o", "b", "--rank", "1")


def of_merge(call, vbfmt, tmp_path):
    base = save_base(tmp_path / "base", weights_of())
    return call("merge", "x.vblora", "--base", base, "-o", "merged")


def of_verify(call, vbfmt, tmp_path):
    (tmp_path / "damaged.vblora").write_bytes(b"VBLORA")
    return call("verify", "x.vblora", "damaged.vblora", "--against", "checkpoint")


def of_inspect(call, vbfmt, tmp_path):
    head = {"head.bias": Tensor.of(np.ones(2, np.float32))}
    save(adapter_of(tensors=head), "head.vblora")
    return call("inspect", "head.vblora")


def of_plot(call, vbfmt, tmp_path):
    pytest.importorskip("matplotlib")
    return call("plot", "x.vblora", "--figure", "usage", "-o", "x.svg")


def of_estimate(call, vbfmt, tmp_path):
    return call("estimate", "--model", "llama-2-7b")


def of_diff(call, vbfmt, tmp_path):
    return call("diff", "checkpoint", "other") | call("diff", "checkpoint", "checkpoint")


def of_bank(call, vbfmt, tmp_path):
    one = call("bank", "split", "x.vblora", "-o", "thin.vblora")
    assert call("bank", "join", "thin.vblora", "-o", "whole.vblora") == one
    return one


def of_bank_list(call, vbfmt, tmp_path):
    vbfmt("bank", "split", "x.vblora", "-o", "thin.vblora")
    return call("bank", "list", ".")


def of_store_add(call, vbfmt, tmp_path):
    return call("store", "add", "store", "x.vblora", "--name", "alice")


def stored(vbfmt):
    assert vbfmt("store", "add", "store", "x.vblora", "--name", "alice").code == 0


def of_store_get(call, vbfmt, tmp_path):
    stored(vbfmt)
    return call("store", "get", "store", "alice", "-o", "got.vblora")


def of_store_list(call, vbfmt, tmp_path):
    stored(vbfmt)
    return call("store", "list", "store")


def of_store_tag(call, vbfmt, tmp_path):
    stored(vbfmt)
    return call("store", "tag", "store", "bob", "alice")


def of_store_verify(call, vbfmt, tmp_path):
    stored(vbfmt)
    (file,) = (tmp_path / "store").rglob("*.vblora")
    file.chmod(0o644)
    file.write_bytes(b"damaged")
    return call("store", "verify", "store")


def of_store_remove(call, vbfmt, tmp_path):
    stored(vbfmt)
    return call("store", "remove", "store", "alice")


def of_store_gc(call, vbfmt, tmp_path):
    stored(vbfmt)
    return call("store", "gc", "store")


def of_store_stats(call, vbfmt, tmp_path):
    stored(vbfmt)
    return call("store", "stats", "store")


def of_jobs(call, vbfmt, tmp_path):
    return call("jobs", "pack", "checkpoint", "other", "-o", "packed", "-j", "1", lines=True)


def of_error(call, vbfmt, tmp_path):
    return {name.removeprefix("error.") for name in call("pack", "none", "-o", "z")} - {"error"}


ANSWERS = {
    name.removeprefix("of_").replace("_", " "): function
    for name, function in list(globals().items())
    if name.startswith("of_")
}


@pytest.mark.parametrize("command", ANSWERS)
def test_the_page_has_the_printed_fields(command, answers, vbfmt, tmp_path):
    assert ANSWERS[command](answers, vbfmt, tmp_path) == documented()[command]


def test_every_command_has_its_section():
    assert set(documented()) == set(ANSWERS)
    words = {section.split()[0] for section in ANSWERS}
    assert words - {"error"} == set(cli.COMMANDS)


def kinds() -> set[str]:
    """Return the kinds of all errors that a command can print."""
    found, left = {"usage", "memory", "difference"}, [VbfmtError]
    while left:
        cls = left.pop()
        left += cls.__subclasses__()
        if "kind" in vars(cls) and cls is not VbfmtError:
            found.add(cls.kind)
    return found


def test_every_kind_of_error_is_in_the_table():
    page = (ROOT / "docs" / "reference" / "errors.md").read_text("utf-8")
    table = page.split("## Kinds and exit statuses")[1].split("## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, flags=re.M)
    assert {kind for cell in cells for kind in re.findall(r"`([^`]+)`", cell)} == kinds()
