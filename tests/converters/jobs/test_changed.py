"""A job that is run again after its inputs or outputs have changed."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from tests.converters.merge.folders import adapter_of, save_base, weights_of
from tests.converters.test_peft import logits_form, write_folder
from vbfmt import save
from vbfmt.converters import jobs
from vbfmt.converters.jobs import journal, tasks


def run(operation, source, folder, **options):
    task = jobs.Task(operation, options)
    (outcome,) = jobs.run(task, jobs.items([str(source)], folder, task), workers=1)
    return outcome


def rewrite(path, content):
    """Write different content of the same size, and restore the times, as unpacking an archive
    does."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_source_of_the_same_size_and_time_is_packed_again(tmp_path):
    source = write_folder(tmp_path / "alice", logits_form(seed=1))
    (tmp_path / "other").mkdir()
    other = write_folder(tmp_path / "other" / "alice", logits_form(seed=2))
    run("pack", source, tmp_path / "out")
    rewrite(
        source / "adapter_model.safetensors", (other / "adapter_model.safetensors").read_bytes()
    )
    outcome = run("pack", source, tmp_path / "out")
    assert outcome.status == "done"
    assert outcome.digest == run("pack", other, tmp_path / "new").digest
    assert run("pack", source, tmp_path / "out").status == "present"


@pytest.mark.parametrize("is_link", [False, True])
def test_an_adapter_is_merged_again_if_the_base_has_changed(tmp_path, is_link):
    save(adapter_of(), tmp_path / "x.vblora")
    base = save_base(tmp_path / "base", weights_of())
    if is_link:
        os.symlink(base, tmp_path / "link")
        base = tmp_path / "link"
    path = base / "model.safetensors"
    assert run("merge", tmp_path / "x.vblora", tmp_path / "out", base=str(base)).ok
    before = (tmp_path / "out" / "x" / "model.safetensors").read_bytes()
    assert run("merge", tmp_path / "x.vblora", tmp_path / "out", base=str(base)).status == "present"
    content = bytearray(path.read_bytes())
    content[-4:] = np.float32(1).tobytes()
    rewrite(path, content)
    assert run("merge", tmp_path / "x.vblora", tmp_path / "out", base=str(base)).status == "done"
    assert (tmp_path / "out" / "x" / "model.safetensors").read_bytes() != before


def test_a_source_that_changes_after_it_was_read_is_packed_again(tmp_path, monkeypatch):
    source = write_folder(tmp_path / "alice", logits_form(seed=1))
    (tmp_path / "other").mkdir()
    other = write_folder(tmp_path / "other" / "alice", logits_form(seed=2))
    pack = tasks.OPERATIONS["pack"]

    def packed_and_then_changed(task, item):
        done = pack(task, item)
        shutil.copytree(other, source, dirs_exist_ok=True)
        return done

    monkeypatch.setitem(tasks.OPERATIONS, "pack", packed_and_then_changed)
    run("pack", source, tmp_path / "out")
    monkeypatch.undo()
    assert run("pack", source, tmp_path / "out").digest == run("pack", other, tmp_path / "b").digest


def test_an_output_whose_permissions_change_is_still_the_jobs(tmp_path):
    save(adapter_of(), tmp_path / "x.vblora")
    run("expand", tmp_path / "x.vblora", tmp_path / "out")
    os.chmod(tmp_path / "out" / "x" / "adapter_config.json", 0o600)
    assert run("expand", tmp_path / "x.vblora", tmp_path / "out").status == "present"


def test_an_output_of_the_job_is_replaced_after_a_run_that_failed(tmp_path):
    source = write_folder(tmp_path / "alice", logits_form(seed=1))
    first = run("pack", source, tmp_path / "out")
    good = (source / "adapter_model.safetensors").read_bytes()
    (source / "adapter_model.safetensors").write_bytes(b"broken")
    assert run("pack", source, tmp_path / "out").status == "failed"
    (source / "adapter_model.safetensors").write_bytes(good)
    again = run("pack", source, tmp_path / "out")
    assert (again.status, again.digest) == ("done", first.digest)


def test_a_slower_concurrent_job_does_not_disown_an_output(tmp_path):
    """Two jobs start at the same time, and the second finds the output of the first."""
    save(adapter_of(), tmp_path / "x.vblora")
    task = jobs.Task("expand")
    items = jobs.items([str(tmp_path / "x.vblora")], tmp_path / "out", task)
    slower = journal.Journal(str(tmp_path / "out"), task)
    slower.begin(items)
    (outcome,) = jobs.run(task, items, workers=1)
    failed = jobs.Outcome(outcome.source, outcome.output, "failed", kind="output")
    slower.end([(items[0], failed)])
    (again,) = jobs.run(task, items, workers=1)
    assert again.status == "present"


@pytest.mark.parametrize("banks", [None, "banks"])
@pytest.mark.parametrize("damage", ["removed", "cut off"])
def test_a_missing_bank_is_written_again(tmp_path, banks, damage):
    source = write_folder(tmp_path / "alice", logits_form(seed=1))
    options = {"bank": "external"} | ({"banks": str(tmp_path / banks)} if banks else {})
    run("pack", source, tmp_path / "out", **options)
    assert run("pack", source, tmp_path / "out", **options).status == "present"
    (bank,) = (tmp_path / (banks or "out")).glob("*.bank")
    content = bank.read_bytes()
    bank.unlink()
    if damage == "cut off":
        bank.write_bytes(content[:-4])
    assert run("pack", source, tmp_path / "out", **options).status == "done"
    assert bank.read_bytes() == content


def test_a_missing_file_in_a_subfolder_of_an_output_is_detected(tmp_path):
    save(adapter_of(), tmp_path / "x.vblora")
    side = {"1_Pooling/config.json": b"{}"}
    base = str(save_base(tmp_path / "base", weights_of(), side_files=side))
    assert run("merge", tmp_path / "x.vblora", tmp_path / "out", base=base).ok
    assert run("merge", tmp_path / "x.vblora", tmp_path / "out", base=base).status == "present"
    (tmp_path / "out" / "x" / "1_Pooling" / "config.json").unlink()
    again = run("merge", tmp_path / "x.vblora", tmp_path / "out", base=base)
    assert (again.status, again.kind) == ("failed", "exists")
