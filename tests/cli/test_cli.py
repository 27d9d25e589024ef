"""The main commands: their arguments, their output, and the files that they write."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from spec.golden.make import worked_example
from tests.converters.test_peft import logits_form, topk_form, write_folder
from vbfmt import __version__, dumps, load, save
from vbfmt.cli import COMMANDS
from vbfmt.converters import peft


def test_pack_prints_how_much_smaller_the_file_is(vbfmt, tmp_path, checkpoint):
    result = vbfmt("pack", checkpoint, "-o", tmp_path / "x.vblora")
    assert result.code == 0
    assert result.err == ""
    first, second, third, fourth, fifth = result.out.splitlines()
    assert first.startswith(f"{tmp_path / 'x.vblora'}: ")
    assert "smaller than" in first
    assert second == "1 module, 10 sub-vectors, read as PEFT VB-LoRA"
    assert third.startswith("sha256:")
    assert fourth == "this digest is of the content; sha256sum of the file prints another value"
    assert fifth == f"to upload: hf upload OWNER/NAME {tmp_path / 'x.vblora'}"
    assert load(tmp_path / "x.vblora") == peft.read(checkpoint)


def test_pack_notes_equal_logits(vbfmt, tmp_path):
    arrays = logits_form()
    arrays["base_model.model.layers.0.q.vblora_logits_A"][:] = 0
    folder = write_folder(tmp_path / "tied", arrays)
    result = vbfmt("pack", folder, "-o", tmp_path / "x.vblora")
    assert result.code == 0
    assert result.err.startswith("note: 4 of 10 sub-vectors have equal logits")


def test_pack_needs_topk_if_there_is_no_config(vbfmt, tmp_path):
    folder = write_folder(tmp_path / "bare", logits_form(), config=None)
    output = tmp_path / "x.vblora"
    result = vbfmt("pack", folder, "-o", output)
    assert result.code == 1
    assert result.err.startswith("error: logits do not show how many vectors are selected")
    assert not output.exists()
    assert vbfmt("pack", folder, "-o", output, "--topk", 3).code == 0
    assert load(output).k == 3


def test_unpacking_and_packing_again_gives_the_same_file(vbfmt, tmp_path, packed):
    assert vbfmt("unpack", packed, "-o", tmp_path / "peft").code == 0
    assert vbfmt("pack", tmp_path / "peft", "-o", tmp_path / "y.vblora").code == 0
    assert (tmp_path / "y.vblora").read_bytes() == packed.read_bytes()


@pytest.mark.parametrize(
    "words", [("pack", "{checkpoint}"), ("unpack", "{packed}"), ("expand", "{packed}")]
)
def test_nothing_is_overwritten_without_force(vbfmt, tmp_path, checkpoint, packed, words):
    output = tmp_path / "there"
    if words[0] == "pack":
        output.write_text("precious")
    else:
        output.mkdir()
        (output / "adapter_config.json").write_text("precious")
    words = [word.format(checkpoint=checkpoint, packed=packed) for word in words]
    result = vbfmt(*words, "-o", output)
    assert result.code == 1
    assert result.err == (
        f"error: the output exists already: {output}; choose another name or give --force\n"
    )
    assert (
        output if output.is_file() else output / "adapter_config.json"
    ).read_text() == "precious"
    assert vbfmt(*words, "-o", output, "--force").code == 0
    assert (output if output.is_file() else output / "adapter_config.json").stat().st_size > 8


def test_verify_of_good_files(vbfmt, packed):
    result = vbfmt("verify", packed, packed)
    assert result.code == 0
    assert result.out.count(f"{packed}: ok\n  sha256:") == 2


def test_verify_reports_each_invalid_file_and_continues(vbfmt, tmp_path, packed):
    damaged = tmp_path / "damaged.vblora"
    data = bytearray(packed.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    result = vbfmt("verify", damaged, tmp_path / "nothing", packed)
    assert result.code == 1
    lines = result.out.splitlines()
    assert lines[0].startswith(f"{damaged}: FAILED, damaged: weights: found SHA-256 ")
    assert lines[1] == (f"{tmp_path / 'nothing'}: FAILED, cannot read: no such file or directory")
    assert lines[2] == f"{packed}: ok"
    answers = json.loads(vbfmt("verify", "--json", damaged, packed).out)
    assert [answer["ok"] for answer in answers] == [False, True]
    assert answers[0]["problems"][0]["part"] == "weights"
    assert answers[0]["problems"][0]["kind"] == "checksum"


def test_verify_against_the_checkpoint(vbfmt, tmp_path, packed, checkpoint):
    result = vbfmt("verify", packed, "--against", checkpoint)
    assert result.code == 0
    assert f": ok, matches {checkpoint}\n  sha256:" in result.out
    other = write_folder(tmp_path / "other", logits_form(seed=1))
    result = vbfmt("verify", packed, "--against", other)
    assert result.code == 1
    assert f"FAILED, does not match {other}: bank: 48 of 48 elements" in result.out


def test_verify_against_a_trusted_digest(vbfmt, packed):
    digest = vbfmt("verify", packed).out.split()[-1]
    assert vbfmt("verify", packed, "--digest", digest).code == 0
    result = vbfmt("verify", packed, "--digest", "sha256:" + "0" * 64)
    assert result.code == 1
    assert "not the trusted adapter: found " + digest in result.out
    for malformed in ("", digest.removeprefix("sha256:"), digest.upper(), digest[:-1]):
        result = vbfmt("verify", packed, "--digest", malformed)
        assert (result.code, result.out) == (2, "")
        assert "is not sha256: and 64 digits" in result.err


def test_inspect_as_text_and_as_json(vbfmt, packed):
    words = vbfmt("inspect", packed, "--modules")
    assert words.code == 0
    assert "h 12, b 4, k 2, r 2, N 10" in words.out
    assert "some/base" in words.out
    assert "layers.0.q" in words.out
    numbers = json.loads(vbfmt("inspect", packed, "--json").out)
    assert (numbers["h"], numbers["b"], numbers["k"], numbers["N"]) == (12, 4, 2, 10)
    assert numbers["bytes"]["file"] == packed.stat().st_size
    assert numbers["bytes"]["bank"] == 12 * 4 * 4
    assert numbers["bytes"]["indices"] == 10 * 2
    assert numbers["bytes"]["weights"] == 10 * 4
    assert numbers["modules"][0]["name"] == "layers.0.q"


def test_diff_of_equal_and_of_different_adapters(vbfmt, tmp_path, packed):
    same = vbfmt("diff", packed, packed)
    assert same.code == 0
    assert "hold the same adapter" in same.out
    folder = write_folder(tmp_path / "other", logits_form(seed=1))
    other = tmp_path / "other.vblora"
    assert vbfmt("pack", folder, "-o", other).code == 0
    differ = vbfmt("diff", packed, other)
    assert differ.code == 1
    assert "bank: 48 of 48 elements" in differ.out
    assert "1 of 1 modules: layers.0.q" in differ.out
    numbers = json.loads(vbfmt("diff", packed, other, "--json").out)
    assert not numbers["same"]
    expected = [
        np.abs(x - y).max()
        for x, y in zip(
            load(packed).factors("layers.0.q"), load(other).factors("layers.0.q"), strict=True
        )
    ]
    assert numbers["modules"][0]["largest_factor"] == pytest.approx(max(expected))


def test_invalid_files_give_one_line_and_no_output(vbfmt, tmp_path):
    text = tmp_path / "text.vblora"
    text.write_text("not it")
    for words in (
        ("unpack", text, "-o", tmp_path / "out"),
        ("expand", text, "-o", tmp_path / "out"),
        ("inspect", text),
        ("pack", tmp_path, "-o", tmp_path / "out"),
        ("pack", tmp_path / "nothing", "-o", tmp_path / "out"),
        ("unpack", tmp_path, "-o", tmp_path / "out"),
        ("expand", tmp_path / "nothing", "-o", tmp_path / "out"),
    ):
        result = vbfmt(*words)
        assert result.code == 1, words
        assert result.out == ""
        assert result.err.startswith("error: ")
        assert result.err.count("\n") == 1
        assert str(tmp_path) in result.err
        assert sorted(os.listdir(tmp_path)) == ["text.vblora"]


@pytest.mark.parametrize(
    "words",
    [("pack",), ("pack", "x"), ("expand", "x", "-o", "y", "--dtype", "int8"), ("verify",), ("no",)],
)
def test_wrong_usage_has_exit_status_2(vbfmt, words):
    result = vbfmt(*words)
    assert result.code == 2
    assert "Usage: vbfmt" in result.err


def test_names_from_files_cannot_control_the_terminal(vbfmt, tmp_path):
    import dataclasses

    adapter = dataclasses.replace(worked_example(), base_model="evil\x1b[2J\nname")
    save(adapter, tmp_path / "x.vblora")
    result = vbfmt("inspect", tmp_path / "x.vblora")
    assert "\x1b" not in result.out
    assert "evil\\x1b[2J\\nname" in result.out


def test_the_topk_form_can_be_packed(vbfmt, tmp_path):
    folder = write_folder(tmp_path / "topk", topk_form())
    assert vbfmt("pack", folder, "-o", tmp_path / "x.vblora").code == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(vbfmt, command):
    result = vbfmt(command, "--help")
    assert result.code == 0
    assert result.out.startswith(f"Usage: vbfmt {command} ")


def test_version(vbfmt):
    assert vbfmt("--version").out == f"vbfmt {__version__}\n"


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    ("words", "kept_out"),
    [
        (["--version"], {"numpy", "msgpack", "torch", "json"}),
        (["--help"], {"numpy", "msgpack", "torch"}),
        (["verify", "x.vblora"], {"torch", "ml_dtypes", "vbfmt.converters", "tempfile"}),
        (["pack", "topk", "-o", "new.vblora"], {"torch", "vbfmt.converters.merge", "logging"}),
    ],
)
def test_nothing_is_imported_before_it_is_needed(tmp_path, words, kept_out):
    (tmp_path / "x.vblora").write_bytes(dumps(worked_example()))
    write_folder(tmp_path / "topk", topk_form())
    program = (
        "import sys, atexit\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        f"sys.argv = ['vbfmt', *{words!r}]\n"
        "from vbfmt.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert not kept_out & set(done.stderr.split())


def test_importing_the_package_imports_only_numpy_and_msgpack():
    program = "import sys, vbfmt; vbfmt.load; vbfmt.Adapter; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert {"numpy", "msgpack"} <= loaded
    assert not loaded & {"torch", "click", "ml_dtypes", "safetensors", "transformers", "rich"}


def test_pack_asks_for_the_layout_if_it_is_ambiguous(vbfmt, tmp_path):
    from tests.converters.test_algorithm1 import saved, state

    path = saved(tmp_path, state())
    words = ("pack", path, "-o", tmp_path / "x.vblora", "--topk", 2)
    assert "say which: --layout nlu or --layout algorithm1" in vbfmt(*words).err
    done = vbfmt(*words, "--layout", "algorithm1")
    assert done.code == 0
    assert ", read as the layout of the paper's Algorithm 1\n" in done.out


def test_the_choices_of_layout_are_the_readers():
    from vbfmt.cli.arguments import LAYOUTS
    from vbfmt.converters import READERS

    assert tuple(reader.name for reader in READERS) == LAYOUTS


@pytest.mark.parametrize(
    "words", [("pack", "x", "-o", "y"), ("verify", "x", "--against", "y"), ("expand", "x")]
)
def test_an_unknown_choice_is_wrong_usage(vbfmt, words):
    for option in ("--to", "--check") if words[0] == "expand" else ("--layout",):
        result = vbfmt(*words, option, "foo")
        assert result.code == 2
        assert f"'{option}': 'foo' is not one of" in result.err


FIELDS = {"message", "kind", "part", "what", "found", "expected", "advice"}


def test_verify_prints_json_for_every_kind_of_problem(vbfmt, tmp_path, packed):
    other = write_folder(tmp_path / "other", logits_form(seed=1))
    differs = vbfmt("verify", packed, "--json", "--against", other)
    assert differs.code == 1
    (answer,) = json.loads(differs.out)
    assert {problem["kind"] for problem in answer["problems"]} == {"difference"}
    assert all(set(problem) == FIELDS for problem in answer["problems"])
    for missing in (
        ("verify", packed, tmp_path / "no", "--json", "--against", tmp_path / "nothing"),
    ):
        result = vbfmt(*missing)
        assert (result.code, result.err) == (1, "")
        answers = json.loads(result.out)
        assert [answer["ok"] for answer in answers] == [False, False]
        for answer in answers:
            assert answer["problems"][-1]["kind"] in ("missing", "source")
            assert str(missing[-1]) in answer["problems"][-1]["message"]
            assert set(answer["problems"][-1]) == FIELDS
