"""The outcome of one operation on one item, in a worker."""

from __future__ import annotations

import os

import pytest

from tests.converters.merge.folders import adapter_of, save_base, weights_of
from tests.converters.test_peft import logits_form, write_folder
from vbfmt import errors, load, save
from vbfmt.converters import jobs
from vbfmt.converters.jobs import fingerprints, journal, tasks
from vbfmt.store import Store


def one(task, *items):
    (outcome, *others) = tasks.run_shard(task, items)
    assert others == []
    return outcome


def test_packing_into_a_store_creates_the_store(tmp_path):
    source = str(write_folder(tmp_path / "user", logits_form()))
    task = jobs.Task("pack", {"base_model": "some/base"}, str(tmp_path / "store"))
    items = jobs.items([source], "", task)
    (outcome,) = jobs.run(task, items, workers=1)
    assert (outcome.status, outcome.output) == ("done", "user")
    with Store(tmp_path / "store") as store:
        assert store.names() == {"user": outcome.digest}
        assert store.open("user").base_model == "some/base"


def test_a_name_in_a_store_is_moved_only_with_overwrite(tmp_path):
    folders = [str(write_folder(tmp_path / f"{n}", logits_form(seed=n))) for n in range(2)]
    task = jobs.Task("pack", {}, str(tmp_path / "store"))
    (first,) = jobs.run(task, [jobs.Item(folders[0], "x")], workers=1)
    (kept,) = jobs.run(task, [jobs.Item(folders[1], "x")], workers=1)
    assert (kept.status, kept.kind) == ("failed", "conflict")
    with Store(tmp_path / "store") as store:
        assert store.names() == {"x": first.digest}
    (moved,) = jobs.run(task, [jobs.Item(folders[1], "x", overwrite=True)], workers=1)
    with Store(tmp_path / "store") as store:
        assert store.names() == {"x": moved.digest}


def test_an_adapter_is_merged(tmp_path):
    save(adapter_of(), tmp_path / "x.vblora")
    base = save_base(tmp_path / "base", weights_of())
    item = jobs.Item(str(tmp_path / "x.vblora"), str(tmp_path / "merged"))
    outcome = one(jobs.Task("merge", {"base": str(base)}), item)
    assert (outcome.status, outcome.digest) == ("done", None)
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_a_damaged_file_fails_with_its_first_problem(tmp_path):
    save(adapter_of(), tmp_path / "x.vblora")
    data = bytearray((tmp_path / "x.vblora").read_bytes())
    data[-1] ^= 1
    (tmp_path / "x.vblora").write_bytes(data)
    outcome = one(jobs.Task("verify"), jobs.Item(str(tmp_path / "x.vblora")))
    assert (outcome.status, outcome.kind) == ("failed", "checksum")
    assert outcome.source == str(tmp_path / "x.vblora")
    assert outcome.message.startswith("damaged: weights: found SHA-256 ")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (MemoryError(), "memory", "memory"),
        (OSError(5, "Input/output error", "x"), "storage", "Input/output error: 'x'"),
    ],
)
def test_an_error_of_the_system_is_the_items_outcome(monkeypatch, error, kind, message):
    def refused(task, item):
        raise error

    monkeypatch.setitem(tasks.OPERATIONS, "refused", refused)
    outcome = one(jobs.Task("refused"), jobs.Item("x", "y"))
    assert (outcome.status, outcome.kind) == ("failed", kind)
    assert message in outcome.message


def test_warnings_are_notes(monkeypatch):
    def warns(task, item):
        errors.warn("note this")
        return "sha256:1", None

    monkeypatch.setitem(tasks.OPERATIONS, "warns", warns)
    assert one(jobs.Task("warns"), jobs.Item("x")).notes == ("note this",)


def test_adapters_of_a_store_are_compared_with_files(tmp_path):
    save(adapter_of(), tmp_path / "x.vblora")
    save(adapter_of(seed=1), tmp_path / "y.vblora")
    with Store(tmp_path / "store", create=True) as store:
        path = store.path(store.add(adapter_of()))
        task = jobs.Task("diff", {"banks": store})
        assert one(task, jobs.Item(path, str(tmp_path / "x.vblora"))).status == "done"
        assert one(task, jobs.Item(path, str(tmp_path / "y.vblora"))).status == "different"


def test_outputs_can_be_given_names(tmp_path):
    task = jobs.Task("expand")
    found = jobs.items(["a/1.vblora", "b"], "out", task, names={"a/1.vblora": "alice"})
    assert [item.output for item in found] == [os.path.join("out", n) for n in ("alice", "b")]
    with pytest.raises(errors.ConfigError, match="two inputs would have the same output"):
        jobs.items(["a/1.vblora", "b"], "out", task, names={"a/1.vblora": "B"})


def test_a_missing_list_of_inputs_is_refused():
    with pytest.raises(errors.ConfigError, match="no list to read"):
        jobs.collected(["-"])


@pytest.mark.parametrize("line", ['{"output": 1}', "[]", "7", '"x"'])
def test_meaningless_lines_of_the_journal_are_skipped(tmp_path, line):
    source = str(write_folder(tmp_path / "user", logits_form()))
    task = jobs.Task("pack")
    items = jobs.items([source], tmp_path / "out", task)
    (done,) = jobs.run(task, items, workers=1)
    with open(tmp_path / "out" / journal.NAME, "a") as stream:
        stream.write(line + "\n")
    assert [each.status for each in jobs.run(task, items, workers=1)] == ["present"]
    assert load(tmp_path / "out" / "user.vblora", digest=done.digest)


def test_an_output_that_is_not_a_packed_file_does_not_belong_to_the_job(tmp_path):
    source = str(write_folder(tmp_path / "user", logits_form()))
    task = jobs.Task("pack")
    items = jobs.items([source], tmp_path / "out", task)
    assert [each.status for each in jobs.run(task, items, workers=1)] == ["done"]
    (tmp_path / "out" / "user.vblora").write_bytes(b"text")
    (outcome,) = jobs.run(task, items, workers=1)
    assert (outcome.status, outcome.kind) == ("failed", "exists")
    assert (tmp_path / "out" / "user.vblora").read_bytes() == b"text"


def test_a_source_without_local_files_has_no_fingerprint():
    assert fingerprints.of_source("owner/repository") == ""


def test_a_folder_that_cannot_be_read_does_not_stop_the_others(tmp_path, monkeypatch):
    (tmp_path / "secret").mkdir()
    source = str(write_folder(tmp_path / "user", logits_form()))
    scandir = os.scandir

    def refused(path):
        if path == str(tmp_path / "secret"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    task = jobs.Task("pack")
    items = jobs.items([str(tmp_path / "secret"), source], tmp_path / "out", task)
    assert [each.status for each in jobs.run(task, items, workers=1)] == ["failed", "done"]
