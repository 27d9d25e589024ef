"""Repositories instead of paths, on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("huggingface_hub")

from tests.converters.hub.stand_in_hub import serving
from tests.converters.merge.folders import adapter_of, save_base, weights_of
from vbfmt import load, save


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture
def run(server, tmp_path):
    """Run the command in a new process, which reads HF_ENDPOINT. Return its output and exit
    status."""
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf")}
    environment.pop("HF_HUB_OFFLINE", None)

    def call(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from vbfmt.cli import main; main()", *map(str, words)],
            cwd=tmp_path,
            env={**environment, **more},
            capture_output=True,
            text=True,
        )

    return call


def test_pack_and_verify_take_a_repository(server, run, tmp_path, data_folder):
    commit = server.add("me/adapter").commit_folder(data_folder / "minilm-vblora")
    done = run("pack", "me/adapter", "-o", "x.vblora")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("x.vblora: 46.4 kB, 8.3× smaller than me/adapter (385.0 kB)")
    proved = run("verify", "x.vblora", "--against", "me/adapter", "--revision", commit)
    assert proved.returncode == 0
    assert "matches me/adapter" in proved.stdout
    offline = run("pack", "me/adapter", "-o", "y.vblora", HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stderr) == (0, "")
    assert (tmp_path / "y.vblora").read_bytes() == (tmp_path / "x.vblora").read_bytes()


def test_expand_and_merge_take_repositories(server, run, tmp_path):
    import dataclasses

    base = server.add("me/base")
    wanted = base.commit_folder(save_base(tmp_path / "one", weights_of()))
    config = {"model_type": "llama", "later": True}
    base.commit_folder(save_base(tmp_path / "two", weights_of(), config=config))
    adapter = dataclasses.replace(adapter_of(), base_model="me/base", base_revision=wanted)
    save(adapter, tmp_path / "x.vblora")
    server.add("me/packed").commit({"x.vblora": (tmp_path / "x.vblora").read_bytes()})
    (tmp_path / "x.vblora").unlink()

    expanded = run("expand", "me/packed", "-o", "lora")
    assert (expanded.returncode, expanded.stderr) == (0, "")
    merged = run("merge", "me/packed", "--base", "me/base", "--strict", "-o", "merged")
    assert (merged.returncode, merged.stderr) == (0, "")
    assert json.loads((tmp_path / "merged" / "config.json").read_text()) == {"model_type": "llama"}
    later = run("merge", "me/packed", "--base", "me/base", "--base-revision", "main", "-o", "other")
    assert later.returncode == 0
    assert "not the base that the adapter names" in later.stderr
    assert "later" in (tmp_path / "other" / "config.json").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("pack", "me/nothing", "-o", "out"),
        ("expand", "me/nothing", "-o", "out"),
        ("merge", "me/nothing", "--base", "me/base", "-o", "out"),
        ("verify", "x.vblora", "--against", "me/nothing"),
        ("pack", "me/adapter", "--revision", "v2", "-o", "out"),
        ("pack", "me/adapter", "--revision", "../../..", "-o", "out"),
        ("expand", "x.vblora", "--revision", "v2", "-o", "out"),
    ],
)
def test_a_missing_repository_or_file_is_one_line(server, run, tmp_path, words):
    save(adapter_of(), tmp_path / "x.vblora")
    server.add("me/adapter").commit({"README.md": b""})
    done = run(*words)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_packed_file_from_the_hub_is_unchanged(server, run, tmp_path):
    save(adapter_of(), tmp_path / "here.vblora")
    data = (tmp_path / "here.vblora").read_bytes()
    server.add("me/packed").commit({"a/x.vblora": data, "b/x.vblora": data})
    ambiguous = run("expand", "me/packed", "-o", "lora")
    assert "say which: hf://OWNER/NAME/a/x.vblora" in ambiguous.stderr
    assert run("expand", "hf://me/packed/b/x.vblora", "-o", "lora").returncode == 0
    assert load(tmp_path / "here.vblora") == adapter_of()


def test_cards_for_the_hub(vbfmt, tmp_path, checkpoint):
    folder = tmp_path / "repository"
    folder.mkdir()
    packed = folder / "x.vblora"
    assert vbfmt("pack", checkpoint, "-o", packed, "--card").code == 0
    assert "library_name: vbfmt" in (folder / "README.md").read_text()
    for words in (("pack", checkpoint, "-o", packed), ("pack", checkpoint, "-o", folder / "y")):
        again = vbfmt(*words, "--card", "--force")
        assert again.code == 1
        assert f"the model card exists already in {folder / 'README.md'}" in again.err
    for number, words in enumerate((("unpack",), ("expand",), ("expand", "--to", "mlx"))):
        output = tmp_path / str(number)
        assert vbfmt(*words, packed, "-o", output, "--card").code == 0
        assert (output / "README.md").read_text().startswith("---\nbase_model: some/base\n")
    assert vbfmt("expand", packed, "-o", "x.gguf", "--to", "gguf", "--card").code == 2


PACKED = ("me/packed", "hf://me/packed", "https://huggingface.co/me/packed/blob/main/x.vblora")


@pytest.mark.parametrize("source", PACKED)
def test_every_command_that_reads_takes_a_repository(server, run, tmp_path, source):
    save(adapter_of(base_model="me/base"), tmp_path / "here.vblora")
    here = (tmp_path / "here.vblora").read_bytes()
    server.add("me/packed").commit({"x.vblora": here})
    for number, words in enumerate(
        (
            ("verify",),
            ("inspect", "--json"),
            ("diff", "here.vblora"),
            ("unpack", "-o"),
            ("expand", "-o"),
        )
    ):
        more = (str(number),) if words[-1] == "-o" else ()
        done = run(*words, *more, source)
        assert (done.returncode, done.stderr) == (0, ""), words


def test_a_checkpoint_on_the_hub_need_not_be_packed_first(server, run, tmp_path, data_folder):
    server.add("me/adapter").commit_folder(data_folder / "minilm-vblora")
    assert run("pack", "me/adapter", "-o", "x.vblora").returncode == 0
    assert run("diff", "me/adapter", "x.vblora").returncode == 0
    assert run("unpack", "me/adapter", "-o", "direct").returncode == 0
    assert run("unpack", "x.vblora", "-o", "by-file").returncode == 0
    name = "adapter_model.safetensors"
    assert (tmp_path / "direct" / name).read_bytes() == (tmp_path / "by-file" / name).read_bytes()


def test_the_base_that_the_adapter_names_is_used_if_it_is_found(server, run, tmp_path):
    import dataclasses

    wanted = server.add("me/base").commit_folder(save_base(tmp_path / "one", weights_of()))
    adapter = dataclasses.replace(adapter_of(), base_model="me/base", base_revision=wanted)
    save(adapter, tmp_path / "x.vblora")
    merged = run("merge", "x.vblora", "-o", "merged")
    assert merged.returncode == 0
    assert merged.stderr == "note: the base model is the one that the adapter names: me/base\n"
    given = run("merge", "x.vblora", "--base", "me/base", "-o", "given")
    assert given.returncode == 0
    for name in ("model.safetensors", "config.json"):
        mine, theirs = (tmp_path / folder / name for folder in ("merged", "given"))
        assert mine.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("named", [None, "me/nothing", "{folder}"])
def test_a_base_that_is_not_found_must_be_given(server, run, tmp_path, named):
    """A folder that the packed file names is never opened, even if it exists."""
    import dataclasses

    folder = save_base(tmp_path / "one", weights_of())
    named = named and named.format(folder=folder)
    save(dataclasses.replace(adapter_of(), base_model=named), tmp_path / "x.vblora")
    done = run("merge", "x.vblora", "-o", "merged")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("give the base: --base PATH\n")
    assert not (tmp_path / "merged").exists()
