"""``vbfmt merge``, and ``vbfmt expand`` of several files."""

from __future__ import annotations

import dataclasses
import json
import os
import sys

import numpy as np
import pytest

import vbfmt as library
from tests.converters.merge.folders import (
    SHAPES,
    adapter_of,
    save_base,
    tensor_of,
    tensors_in,
    weights_of,
)
from vbfmt.cli import progress
from vbfmt.converters._files import safetensors


@pytest.fixture
def base(tmp_path):
    return save_base(tmp_path / "base", weights_of(), side_files={"tokenizer.json": b"{}"})


@pytest.fixture
def files(tmp_path):
    """Two packed adapters."""
    paths = []
    for seed in (1, 2):
        paths.append(tmp_path / f"{seed}.vblora")
        library.save(adapter_of(seed=seed), paths[-1])
    return paths


def test_the_number_of_applied_modules_is_printed(vbfmt, base, files, tmp_path):
    out = tmp_path / "out"
    result = vbfmt("merge", files[0], "--base", base, "-o", out)
    assert (result.code, result.err) == (0, "")
    assert f"{out}: " in result.out
    assert "4 of 4 modules applied" in result.out
    assert "model.safetensors: " in result.out
    assert "4 of 6 tensors changed" in result.out
    assert "copied: config.json, tokenizer.json" in result.out
    assert len(tensors_in(out)) == 6


def test_a_checkpoint_need_not_be_packed_first(vbfmt, base, files, tmp_path):
    assert vbfmt("unpack", files[0], "-o", tmp_path / "checkpoint").code == 0
    assert vbfmt("merge", tmp_path / "checkpoint", "--base", base, "-o", tmp_path / "a").code == 0
    assert vbfmt("merge", files[0], "--base", base, "-o", tmp_path / "b").code == 0
    direct, by_file = tensors_in(tmp_path / "a"), tensors_in(tmp_path / "b")
    assert direct.keys() == by_file.keys()
    for name, tensor in direct.items():
        assert abs(tensor.numpy() - by_file[name].numpy()).max() <= 1e-6


def test_a_dry_run_prints_the_same_and_writes_nothing(vbfmt, base, files, tmp_path):
    out = tmp_path / "out"
    foretold = vbfmt("merge", files[0], "--base", base, "-o", out, "--dry-run")
    assert foretold.code == 0
    assert not out.exists()
    done = vbfmt("merge", files[0], "--base", base, "-o", out)
    upload = f"to upload: hf upload OWNER/NAME {out}\n"
    assert foretold.out.replace("would be ", "") + upload == done.out
    again = vbfmt("merge", files[0], "--base", base, "-o", out, "--dry-run")
    assert again.code == 1
    assert "exists already" in again.err


def test_json_output(vbfmt, base, files, tmp_path):
    out = tmp_path / "out"
    answer = json.loads(vbfmt("merge", files[0], "--base", base, "-o", out, "--json").out)
    assert answer["written"] is True
    assert answer["modules_applied"] == answer["modules"] == 4
    assert sorted(answer["files"]["model.safetensors"]["changed"]) == [
        f"{name}.weight" for name in sorted(SHAPES)
    ]
    assert answer["bytes"] == sum(path.stat().st_size for path in out.iterdir())


def test_several_files_and_weights(vbfmt, base, files, tmp_path):
    out = tmp_path / "out"
    words = ("--weight", "0.5", "--weight", "-1")
    assert vbfmt("merge", *files, "--base", base, "-o", out, *words).code == 0
    record = json.loads((out / "vbfmt_merge.json").read_text())
    assert [entry["weight"] for entry in record["adapters"]] == [0.5, -1.0]


@pytest.mark.parametrize("name", ["merge", "expand"])
def test_a_wrong_number_of_weights_is_wrong_usage(vbfmt, base, files, tmp_path, name):
    where = ("--base", base) if name == "merge" else ()
    result = vbfmt(name, *files, *where, "-o", tmp_path / "out", "--weight", "1")
    assert result.code == 2
    assert "1 --weight for 2 files" in result.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda base: (base / "model.safetensors").unlink(), "no base model"),
        (lambda base: (base / "model.safetensors").write_bytes(b"no"), "not a safetensors file"),
        (lambda base: (base / "config.json").write_text("{"), "not a JSON object"),
        (lambda base: (base / "adapter_config.json").write_text("{}"), "holds an adapter"),
    ],
)
def test_errors_are_one_line(vbfmt, base, files, tmp_path, change, words):
    change(base)
    result = vbfmt("merge", files[0], "--base", base, "-o", tmp_path / "out")
    assert result.code == 1
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert words in result.err
    assert not (tmp_path / "out").exists()


def test_progress_on_a_terminal_shows_bytes_and_rate(monkeypatch):
    pty = pytest.importorskip("pty", reason="pseudo-terminals are POSIX")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(progress, "_PATIENCE", 0)
        with progress.shown("bytes") as advance:
            advance(1_000_000, 2_000_000)
            advance(1_000_000, 2_000_000)
        terminal.flush()
        shown = ""
        while not shown.endswith("\n"):  # it comes in parts
            shown += os.read(ours, 10_000).decode()
    os.close(ours)
    assert "2.0 MB of 2.0 MB" in shown
    assert "/s" in shown


def test_a_pipe_gets_no_progress():
    with progress.shown("bytes") as advance:
        assert advance is None


def test_expand_adds_ranks(vbfmt, files, tmp_path):
    result = vbfmt("expand", *files, "-o", tmp_path / "lora")
    assert result.code == 0
    assert "LoRA of rank 4" in result.out
    tensors = safetensors.read(tmp_path / "lora" / "adapter_model.safetensors").tensors
    assert {min(tensor.shape) for tensor in tensors.values()} == {4}


def test_expand_reduces_the_rank_and_prints_the_loss(vbfmt, files, tmp_path):
    result = vbfmt("expand", *files, "--weight", "1", "--weight", "0.1", "-o", tmp_path / "lora",
                   "--rank", "2")  # fmt: skip
    assert result.code == 0
    assert "LoRA of rank 2" in result.out
    shown = [line.split() for line in result.out.splitlines() if line.startswith("  model.")]
    advance = json.loads(vbfmt("expand", *files, "--weight", "1", "--weight", "0.1", "-o",
                            tmp_path / "again", "--rank", "2", "--json").out)  # fmt: skip
    lost = advance["lost"]
    assert set(lost) == set(SHAPES)
    assert all(0 < share < 0.2 for share in lost.values())
    worst_first = sorted(lost, key=lambda name: (-lost[name], name))
    assert shown == [[name, f"{lost[name]:.3g}"] for name in worst_first[:3]]
    everything = vbfmt("expand", *files, "--weight", "1", "--weight", "0.1", "-o",
                       tmp_path / "all", "--rank", "2", "-v").out  # fmt: skip
    assert all(f"  {name}  {lost[name]:.3g}" in everything for name in lost)
    mean = sum(lost.values()) / len(lost)
    assert f"each ΔW: {mean:.3g} on average over {len(lost)} modules" in result.out


@pytest.mark.parametrize("inside", [False, True])
def test_force_does_not_merge_over_the_packed_file(vbfmt, base, files, tmp_path, inside):
    file = files[0].rename(tmp_path / "packed")
    out = file
    if inside:
        out = tmp_path / "out"
        assert vbfmt("merge", file, "--base", base, "-o", out).code == 0
        file = file.rename(out / "x.vblora")
    result = vbfmt("merge", file, "--base", base, "-o", out, "--force")
    assert (result.code, "not the output of an earlier merge" in result.err) == (1, True)
    assert file.read_bytes() == library.dumps(adapter_of(seed=1))


def test_changed_names_of_a_base_without_a_head_are_noted(vbfmt, tmp_path):
    head = {"score.weight": tensor_of(np.ones((3, 24)))}
    bare = {name.removeprefix("model."): tensor for name, tensor in weights_of().items()}
    base = save_base(tmp_path / "base", bare)
    adapter = adapter_of(tensors=head, config='{"task_type":"SEQ_CLS"}')
    library.save(adapter, tmp_path / "x.vblora")
    result = vbfmt("merge", tmp_path / "x.vblora", "--base", base, "-o", tmp_path / "m")
    assert "all tensor names of the base now begin with model." in result.out
    assert "the adapter's names begin with 'model.', the base's do not" in result.out


def test_heads_that_are_not_scaled_are_noted(vbfmt, tmp_path):
    head = {"score.weight": tensor_of(np.ones((3, 24)))}
    library.save(adapter_of(tensors=head), tmp_path / "a.vblora")
    library.save(adapter_of(seed=2), tmp_path / "b.vblora")
    words = "expand", tmp_path / "a.vblora", tmp_path / "b.vblora", "-o", tmp_path / "lora"
    result = vbfmt(*words, "--weight", 0.5, "--weight", 1)
    assert result.code == 0
    assert "are not scaled by --weight" in " ".join(result.err.split())


def test_a_weight_of_zero_is_noted(vbfmt, base, files, tmp_path):
    alone = vbfmt("merge", files[0], "--base", base, "-o", tmp_path / "a", "--weight", 0)
    assert (alone.code, alone.err) == (0, "note: --weight 0: ΔW is 0, so no module changes\n")
    before, after = tensors_in(base), tensors_in(tmp_path / "a")
    assert {name: after[name].data.tobytes() for name in after} == {
        name: before[name].data.tobytes() for name in before
    }
    words = (*files, "--base", base, "-o", tmp_path / "b", "--weight", 1, "--weight", 0)
    assert "note: 1 of 2 adapters have --weight 0 and add nothing\n" in vbfmt("merge", *words).err
    expanded = vbfmt("expand", files[0], "-o", tmp_path / "c", "--weight", 0)
    assert "note: --weight 0: ΔW is 0" in expanded.err


def test_without_huggingface_hub_a_repository_is_not_a_missing_file(vbfmt, tmp_path, monkeypatch):
    named = dataclasses.replace(adapter_of(), base_model="me/base")
    library.save(named, tmp_path / "x.vblora")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert vbfmt("merge", tmp_path / "x.vblora", "-o", tmp_path / "merged").err == (
        "error: repositories on the Hub need huggingface_hub: hf://me/base; "
        "pip install 'vbfmt[hub]', or give the base: --base PATH\n"
    )


def test_a_checkpoint_instead_of_a_packed_file_gets_the_pack_command(vbfmt, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    for command in ("verify", "inspect"):
        answer = vbfmt(command, tmp_path / "checkpoint")
        assert answer.code == 1
        assert "first: vbfmt pack CHECKPOINT -o FILE.vblora\n" in answer.out + answer.err
