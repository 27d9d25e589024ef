"""The conformance files: this library gives every expected verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spec.corpus import make
from spec.golden.make import GOLDEN, without_bank
from vbfmt import banks, dumps, errors, load, loads, packed, verify
from vbfmt.converters import lora, peft

CORPUS = Path(make.__file__).parent
VERDICTS = json.loads((CORPUS / make.VERDICTS).read_text())
VALID, INVALID = VERDICTS["valid"], VERDICTS["invalid"]
BANKS = CORPUS / "banks"


def file(group, name):
    return CORPUS / group / f"{name}.vblora"


def test_the_corpus_has_enough_files_and_is_small():
    assert len(VALID) >= 35
    assert len(INVALID) >= 80
    files = [path for path in CORPUS.rglob("*.*") if path.suffix not in (".py", ".pyc")]
    assert sum(path.stat().st_size for path in files) < 650_000


@pytest.mark.parametrize("group", ["valid", "invalid"])
def test_every_file_has_a_verdict_and_every_verdict_a_file(group):
    assert {path.stem for path in (CORPUS / group).iterdir()} == set(VERDICTS[group])


def test_the_files_are_those_that_the_script_writes():
    for name, data in make.corpus().items():
        assert (CORPUS / name).read_bytes() == data, name


@pytest.mark.parametrize("name", VALID)
def test_valid(name, tmp_path):
    path = file("valid", name)
    adapter = load(path, digest=VALID[name]["digest"], banks=BANKS)
    embedded = path.read_bytes()
    if name.startswith("thin-"):
        banks.join(path, tmp_path / "embedded", banks=BANKS)
        embedded = (tmp_path / "embedded").read_bytes()
    assert make.content(embedded, adapter) == VALID[name]
    assert verify(path, digest=VALID[name]["digest"], banks=BANKS).ok
    for module in VALID[name]["modules"]:
        a, b = adapter.factors(module["name"])
        assert make.sha256(a.tobytes()) == module["A"]
        assert make.sha256(b.T.tobytes()) == module["B_transposed"]


@pytest.mark.parametrize("name", VALID)
def test_files_without_newer_features_are_rewritten_byte_for_byte(name):
    data = file("valid", name).read_bytes()
    newer = "optional-" in name or "minor-" in name
    form = "external" if name.startswith("thin-") else "embedded"
    assert (dumps(loads(data, banks=BANKS), bank=form) == data) is not newer


@pytest.mark.parametrize("name", VALID)
def test_the_digest_covers_ignored_keys(name):
    _, digest, _ = packed.load_with_form(file("valid", name), banks=BANKS)
    assert digest == VALID[name]["digest"]


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("target", [lora, peft])
def test_valid_files_are_converted_or_refused_in_one_line(target, name, tmp_path):
    adapter = load(file("valid", name), banks=BANKS)
    if target is peft and name in ("ranks-per-module", "thin-several-modules"):
        with pytest.raises(errors.TargetError, match="one rank for all modules"):
            target.write(adapter, tmp_path / "x")
        return
    if name == "config-1000-digits" and target is peft:  # among them 1e999
        with pytest.raises(errors.TargetError, match="no program could read back"):
            target.write(adapter, tmp_path / "x")
        assert not list(tmp_path.iterdir())
        return
    target.write(adapter, tmp_path / "x")
    config = json.loads((tmp_path / "x" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["peft_type"] == {lora: "LORA", peft: "VBLORA"}[target]
    if target is peft and any(tensor.shape == (0,) for tensor in adapter.tensors.values()):
        with pytest.raises(errors.SourceError, match="which DeepSpeed ZeRO-3 saves"):
            peft.read(tmp_path / "x")
    elif target is peft:
        assert peft.read(tmp_path / "x").indices.tolist() == adapter.indices.tolist()


@pytest.mark.parametrize("name", INVALID)
def test_invalid(name):
    path = file("invalid", name)
    with pytest.raises(errors.VbfmtError) as error:
        loads(path.read_bytes(), banks=BANKS)
    assert (error.value.kind, error.value.part) == (INVALID[name]["kind"], INVALID[name]["part"])
    with pytest.raises(type(error.value)) as again:
        load(path, banks=BANKS)
    assert "\n" not in str(again.value)
    of_the_bank = INVALID[name]["kind"] == "checksum" and name.startswith("thin-bank-")
    assert str(BANKS if of_the_bank else path) in str(again.value)


@pytest.mark.parametrize("name", INVALID)
def test_verify_finds_the_one_fault_first_and_does_not_raise(name):
    report = verify(file("invalid", name), banks=BANKS)
    assert not report.ok
    assert (report.problems[0].kind, report.problems[0].part) == (
        INVALID[name]["kind"],
        INVALID[name]["part"],
    )


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files_are_written_unchanged(name, golden_folder):
    assert dumps(GOLDEN[name]()) == (golden_folder / name).read_bytes()


def test_the_worked_example_without_its_bank_is_written_unchanged(golden_folder):
    for name, data in without_bank().items():
        assert (golden_folder / name).read_bytes() == data
    thin = golden_folder / "thin" / "worked-example.vblora"
    _, digest, _ = packed.load_with_form(thin)
    assert digest == packed.load_with_form(golden_folder / "worked-example.vblora")[1]
    assert len(thin.read_bytes()) == 396


def test_the_dump_in_the_specification_is_the_worked_example(golden_folder):
    """The dump is in section 11."""
    text = (golden_folder.parent / "vblora-1.0.md").read_text()
    lines = [line for line in text.splitlines() if line[8:10] == ": " and line.startswith("000")]
    printed = bytes.fromhex("".join(line[10:50].replace(" ", "") for line in lines))
    assert printed == (golden_folder / "worked-example.vblora").read_bytes()
