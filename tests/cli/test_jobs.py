"""``vbfmt jobs``: its options, and what it prints."""

from __future__ import annotations

import json
import os
import warnings

import pytest

from tests.converters.merge.folders import adapter_of, save_base, weights_of
from tests.converters.test_peft import logits_form, write_folder
from vbfmt import load, save
from vbfmt.cli import jobs as command
from vbfmt.cli import progress
from vbfmt.converters import jobs
from vbfmt.converters.jobs import Outcome
from vbfmt.errors import StorageError
from vbfmt.store import Store

NAMES = ("team/alice", "bob")


@pytest.fixture
def files(tmp_path):
    """Two packed files."""
    (tmp_path / "packed").mkdir()
    for number, name in enumerate(NAMES):
        save(
            adapter_of(seed=number, base_model=f"base-{number}"),
            tmp_path / "packed" / f"{name.replace('/', '__')}.vblora",
        )
    return tmp_path / "packed"


@pytest.fixture
def store(tmp_path):
    """Return a store with the same adapters, by their names, and one adapter without a name."""
    with Store(tmp_path / "store", create=True) as store:
        for number, name in enumerate(NAMES):
            store.add(adapter_of(seed=number, base_model=f"base-{number}"), name=name)
        store.add(adapter_of(seed=9))
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pack", "x"], "give either -o FOLDER or --store STORE"),
        (["pack", "x", "-o", "y", "--store", "z"], "give either -o FOLDER or --store STORE"),
        (["pack", "x", "--store", "y", "--bank", "external"], "--bank needs -o"),
        (["pack", "--from-store", "x", "-o", "y"], "No such option"),
        (["verify", "x", "--base-is", "y"], "--base-is needs --from-store"),
        (["verify"], "no inputs: give SRC... or --from-store"),
    ],
)
def test_wrong_usage(vbfmt, words, message):
    result = vbfmt("jobs", *words)
    assert result.code == 2
    assert message in result.err


def test_checkpoints_go_into_a_store_that_is_made(vbfmt, tmp_path):
    folder = write_folder(tmp_path / "alice", logits_form())
    words = ("jobs", "pack", folder, "--store", tmp_path / "store", "-j", 1)
    assert vbfmt(*words).out.splitlines()[-1] == "1 done"
    with Store(tmp_path / "store") as store:
        assert list(store.names()) == ["alice"]


def test_all_named_adapters_of_a_store_are_verified(vbfmt, store):
    assert vbfmt("jobs", "verify", "--from-store", store, "-j", 1).out == "2 done\n"
    words = ("jobs", "verify", "--from-store", store, "--base-is")
    (line,) = vbfmt(*words, "base-1", "-j", 1, "--json").out.splitlines()
    with Store(store) as opened:
        assert json.loads(line)["digest"] == opened.names()["bob"]
    none = vbfmt(*words, "another", "-j", 1)
    assert none.out == "nothing to do: there are no inputs\n"
    assert "has the base model another; vbfmt store list shows them" in none.err


def test_adapters_of_a_store_are_expanded_under_their_names(vbfmt, store, files, tmp_path):
    first = vbfmt("jobs", "expand", "--from-store", store, "-o", tmp_path / "loras", "-j", 1)
    assert (first.code, first.out) == (0, "2 done\n")
    assert {"bob", "team__alice"} < set(os.listdir(tmp_path / "loras"))
    again = vbfmt("jobs", "expand", "--from-store", store, "-o", tmp_path / "loras", "-j", 1)
    assert again.out == "2 done before\n"
    both = vbfmt(
        "jobs", "expand", files / "bob.vblora", "--from-store", store, "-o", tmp_path / "x", "-j", 1
    )
    assert both.code == 2
    assert "two inputs would have the same output: bob" in both.err


def test_adapters_are_merged_one_by_one(vbfmt, files, tmp_path):
    base = save_base(tmp_path / "base", weights_of())
    words = ("jobs", "merge", f"{files}/*", "--base", base, "-o", tmp_path / "merged", "-j", 1)
    assert vbfmt(*words).out.splitlines()[-1] == "2 done"
    assert (tmp_path / "merged" / "bob" / "model.safetensors").is_file()


def test_a_store_and_files_are_compared_with_files_of_the_same_names(vbfmt, store, files):
    words = ("jobs", "diff", "--from-store", store, "--with", files, "-j", 1)
    assert vbfmt(*words).out == "2 done\n"
    save(load(files / "bob.vblora"), files / "team__alice.vblora", overwrite=True)
    different = vbfmt(*words)
    assert different.code == 1
    assert different.out.splitlines()[-1] == "1 done, 1 different"
    assert "DIFFERENT" in different.out
    assert vbfmt("jobs", "diff", f"{files}/*", "--with", files, "-j", 1).out == "2 done\n"


def test_notes_name_the_input(vbfmt, capsys):
    with warnings.catch_warnings():
        command._show(Outcome("x", "y", "done", notes=("k differs",)), as_json=False)
    assert "note: x: k differs" in capsys.readouterr().err


def test_progress_is_counted_in_adapters(vbfmt, files, monkeypatch):
    steps = []

    class Shown:
        def __enter__(self):
            return lambda *numbers: steps.append(numbers)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(progress, "shown", lambda unit: Shown())
    assert vbfmt("jobs", "verify", f"{files}/*", "-j", 1).code == 0
    assert steps == [(1, 2), (1, 2)]


def test_an_output_folder_that_cannot_be_created_is_one_error(vbfmt, tmp_path):
    write_folder(tmp_path / "user", logits_form(seed=0))
    (tmp_path / "file").write_bytes(b"precious")
    done = vbfmt("jobs", "pack", tmp_path / "user", "-o", tmp_path / "file")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "expected a folder" in done.err
    assert (tmp_path / "file").read_bytes() == b"precious"


def test_a_folder_of_packed_files_is_refused_and_a_pattern_suggested(vbfmt, files):
    done = vbfmt("jobs", "verify", files)
    assert done.code == 2
    assert f"give them: '{files}/*.vblora'" in done.err


def test_notes_and_errors_name_options(vbfmt, tmp_path, data_folder):
    checkpoint = data_folder / "minilm-vblora"
    done = vbfmt("jobs", "expand", checkpoint, "-o", tmp_path / "loras", "-j", "1")
    assert done.code == 0
    assert "not every runtime loads them: see --check, --drop-extras" in done.err
    assert "`" not in done.err
    vbfmt("pack", checkpoint, "-o", tmp_path / "x.vblora", "--bank", "external")
    (bank,) = tmp_path.glob("*.bank")
    bank.unlink()
    failed = vbfmt("jobs", "verify", tmp_path / "x.vblora", "-j", "1")
    assert failed.code == 1
    assert "give its folder: --banks FOLDER" in failed.out
    assert "`" not in failed.out


@pytest.mark.parametrize("operation", ["verify", "expand", "diff"])
def test_banks_are_found_in_the_given_folder(vbfmt, tmp_path, files, operation):
    thin = tmp_path / "thin"
    for file in files.iterdir():
        split = vbfmt("bank", "split", file, "-o", thin / file.name, "--banks", tmp_path / "shelf")
        assert split.code == 0
    output = {"verify": (), "expand": ("-o", tmp_path / "loras"), "diff": ("--with", files)}
    words = ("jobs", operation, *sorted(thin.iterdir()), *output[operation], "-j", "1")
    assert vbfmt(*words).code == 1
    assert vbfmt(*words, "--banks", tmp_path / "shelf").code == 0
    both = vbfmt(*words, "--banks", tmp_path / "shelf", "--from-store", tmp_path / "store")
    assert (both.code, "exclude each other" in both.err) == (2, True)


def test_a_checkpoint_folder_may_contain_its_packed_file(vbfmt, tmp_path):
    source = write_folder(tmp_path / "alice", logits_form())
    assert vbfmt("pack", source, "-o", source / "alice.vblora").code == 0
    assert vbfmt("jobs", "pack", source, "-o", tmp_path / "packed").code == 0
    assert vbfmt("jobs", "expand", source, "-o", tmp_path / "loras").code == 0
    (source / "adapter_model.safetensors").unlink()
    assert "no adapter weights" in vbfmt("jobs", "pack", source, "-o", tmp_path / "packed").out
    result = vbfmt("jobs", "expand", source, "-o", tmp_path / "loras")
    assert (result.code, "is a folder of packed files" in result.err) == (2, True)


def test_nothing_follows_the_json_lines_of_a_run_that_fails_half_way(vbfmt, packed, monkeypatch):
    """Earlier, the error followed them, over several lines."""
    run = jobs.run

    def failing(*arguments, **options):
        yield from run(*arguments, **options)
        raise StorageError("cannot write", file="journal")

    monkeypatch.setattr(jobs, "run", failing)
    done = vbfmt("jobs", "verify", packed, "--json")
    assert (done.code, done.err) == (1, "error: cannot write journal\n")
    assert [json.loads(line)["status"] for line in done.out.splitlines()] == ["done"]
