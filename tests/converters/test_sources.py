"""Repositories on the Hub, with a local server in its place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")

from huggingface_hub import constants, file_download, utils

from spec.golden.make import worked_example
from tests.conftest import warned
from tests.converters.hub.stand_in_hub import serving
from tests.converters.merge.folders import adapter_of, save_base, tensors_in, weights_of
from tests.converters.test_peft import logits_form, write_folder
from vbfmt import Adapter, dumps, errors, load, save
from vbfmt.converters import merge, peft, read, sources


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Run an empty hub with an empty cache."""
    with serving() as running:
        point_at(running.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        set_offline(monkeypatch, offline=False)
        monkeypatch.chdir(tmp_path)
        yield running


def set_offline(monkeypatch, *, offline):
    """Set what HF_HUB_OFFLINE sets. The variable is read only when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    # Before version 1, a session keeps the settings with which it was created.
    getattr(utils._http, "reset_sessions", lambda: None)()


def point_at(url, monkeypatch):
    """Set what HF_ENDPOINT sets. The variable is read only when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    if hasattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE"):  # before version 1
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def folder(tmp_path):
    """Return a PEFT checkpoint with other files that are common in repositories."""
    result = write_folder(tmp_path / "here", logits_form())
    (result / "adapter_model.bin").write_bytes(b"a pickle")
    (result / "README.md").write_text("# card")
    (result / "training_args.bin").write_bytes(b"another")
    return result


def test_only_needed_files_are_downloaded(server, folder):
    server.add("me/adapter").commit_folder(folder)
    path = sources.checkpoint("me/adapter")
    assert sorted(server.fetched) == ["adapter_config.json", "adapter_model.safetensors"]
    assert read(path) == peft.read(folder)


def test_a_pickle_is_downloaded_if_there_is_no_safetensors_file(server, folder):
    (folder / "adapter_model.safetensors").unlink()
    server.add("me/adapter").commit_folder(folder)
    path = sources.checkpoint("me/adapter")
    assert sorted(server.fetched) == ["adapter_config.json", "adapter_model.bin"]
    with pytest.raises(errors.SourceError, match="not a pickle of tensors only: refused"):
        read(path)


def test_an_existing_local_path_is_preferred(server, folder, tmp_path):
    (tmp_path / "me").mkdir()
    folder.rename(tmp_path / "me" / "adapter")
    assert sources.checkpoint("me/adapter") == "me/adapter"
    assert server.asked == []


@pytest.mark.parametrize(
    "name",
    [
        "adapter",
        "/me/adapter",
        "me/adapter/more",
        "../adapter",
        "me/..",
        "./adapter",
        "me/adapter.vblora",
        "me/a--b",
        "me/" + "a" * 100,
        "m\u00e9/adapter",
        "me/ad apter",
        "me/adapter\n",
        "me/adapter.git",
        "",
    ],
)
def test_other_names_are_paths_and_cause_no_request(server, name):
    assert sources.checkpoint(name) == name
    assert server.asked == []


@pytest.mark.parametrize("revision", ["../../x", "/x", "a//b", "a b", "-x", "x/../y", "x\n", ""])
def test_an_invalid_revision_is_refused(server, revision):
    with pytest.raises(errors.SourceError, match="not a valid revision"):
        sources.checkpoint("me/adapter", revision=revision)
    assert server.asked == []


@pytest.mark.parametrize(
    "name", ["hf://me", "hf://me/../x", "hf://me/x/../y", "hf://me/x/c:y", "hf://me/x//y", "hf://"]
)
def test_an_invalid_repository_name_is_refused(server, name):
    with pytest.raises(errors.SourceError, match="not a valid repository"):
        sources.checkpoint(name)
    assert server.asked == []


def test_revisions_are_branches_tags_and_commits(server, tmp_path):
    repository = server.add("me/adapter")
    one = write_folder(tmp_path / "one", logits_form())
    two = write_folder(tmp_path / "two", logits_form(seed=1))
    first = repository.commit_folder(one)
    repository.revisions["v1"] = first
    repository.commit_folder(two)
    repository.commit_folder(one, "refs/pr/1")
    assert read(sources.checkpoint("me/adapter")) == peft.read(two)
    for revision in ("v1", first, "refs/pr/1"):
        assert read(sources.checkpoint("me/adapter", revision=revision)) == peft.read(one)
    assert read(sources.checkpoint("hf://me/adapter@v1")) == peft.read(one)
    assert read(sources.checkpoint("hf://me/adapter@refs%2Fpr%2F1")) == peft.read(one)
    with pytest.raises(errors.SourceError, match=r"no such revision on the Hub: .*me/adapter@v2"):
        sources.checkpoint("me/adapter", revision="v2")
    with pytest.raises(errors.SourceError, match="two different revisions"):
        sources.checkpoint("hf://me/adapter@v1", revision="v2")


def test_a_revision_of_a_local_path_is_refused(server, folder):
    with pytest.raises(errors.SourceError, match="not a repository on the Hub.*a local path"):
        sources.checkpoint(str(folder), revision="main")


def test_a_missing_or_forbidden_file_is_one_line(server, folder):
    with pytest.raises(errors.SourceError, match="no such file, folder or repository") as missing:
        sources.checkpoint("me/nothing")
    server.add("me/gated").commit_folder(folder)
    server.add("me/gated").gated = True
    with pytest.raises(errors.SourceError, match="gated: me/gated; ask for access") as gated:
        sources.checkpoint("me/gated")
    server.add("me/empty").commit({"README.md": b"# nothing"})
    with pytest.raises(errors.SourceError, match=r"no weights .*: found README\.md") as empty:
        sources.checkpoint("me/empty")
    server.status = 503
    with pytest.raises(errors.SourceError, match="the Hub refused: me/gated: .*503") as down:
        sources.checkpoint("me/gated")
    for caught in (missing, gated, empty, down):
        assert "\n" not in str(caught.value)


def test_the_cache_is_used_if_the_server_does_not_answer(server, folder, monkeypatch):
    server.add("me/adapter").commit_folder(folder)
    path = sources.checkpoint("me/adapter")
    point_at("http://127.0.0.1:9", monkeypatch)  # port 9 (discard), on which nothing listens
    with warned() as messages:
        assert sources.checkpoint("me/adapter") == path
    assert "using the cached copy" in messages[0]
    with pytest.raises(errors.SourceError, match="and no answer from the Hub: me/other"):
        sources.checkpoint("me/other")
    with pytest.raises(errors.SourceError, match="^no answer from the Hub: hf://me/other"):
        sources.checkpoint("hf://me/other")


def test_offline_the_cache_is_used_without_requests(server, folder, monkeypatch):
    server.add("me/adapter").commit_folder(folder)
    path = sources.checkpoint("me/adapter")
    server.asked.clear()
    set_offline(monkeypatch, offline=True)
    with warned() as messages:
        assert sources.checkpoint("me/adapter") == path
    assert messages == []
    for name, revision in (("me/other", None), ("me/adapter", "v2")):
        with pytest.raises(errors.SourceError, match=r"not in the Hub's cache.*HF_HUB_OFFLINE"):
            sources.checkpoint(name, revision=revision)
    assert server.asked == []


def test_a_packed_file_is_found_in_its_repository(server, tmp_path):
    data = dumps(worked_example())
    repository = server.add("me/packed")
    repository.commit({"README.md": b"", "x.vblora": data, "sub/adapter_model.bin": b""})
    path = sources.packed("me/packed")
    assert Path(path).read_bytes() == data
    assert server.fetched == ["x.vblora"]
    repository.commit({"x.vblora": data, "sub/y.vblora": data + b"y"}, "two")
    with pytest.raises(errors.SourceError, match=r"more than one.*found sub/y.vblora, x.vblora"):
        sources.packed("me/packed", revision="two")
    assert Path(sources.packed("hf://me/packed@two/sub/y.vblora")).read_bytes() == data + b"y"
    with pytest.raises(errors.SourceError, match=r"no z.vblora in the repository"):
        sources.packed("hf://me/packed/z.vblora")
    repository.commit({"README.md": b""}, "none")
    with pytest.raises(errors.SourceError, match=r"no \.vblora file"):
        sources.packed("me/packed", revision="none")


def test_load_accepts_a_repository(server, tmp_path):
    adapter = worked_example()
    repository = server.add("me/packed")
    repository.commit({"README.md": b"", "x.vblora": dumps(adapter)})
    assert load("hf://me/packed") == adapter
    assert Adapter.load("hf://me/packed@main/x.vblora", digest=adapter.digest) == adapter
    with pytest.raises(errors.DigestError, match=r"not the adapter that was asked for in /.*"):
        load("hf://me/packed", digest="sha256:" + "0" * 64)
    with pytest.raises(FileNotFoundError, match=r"^no such repository on the Hub: hf://me/nothing"):
        load("hf://me/nothing")
    with pytest.raises(errors.SourceError, match=r"not a valid repository"):
        load("hf://me")


def test_configs_are_downloaded_with_a_file(server, folder):
    server.add("me/many").commit(
        {f"sub/{path.name}": path.read_bytes() for path in folder.iterdir()}
    )
    path = sources.checkpoint("hf://me/many/sub/adapter_model.safetensors")
    assert read(path) == peft.read(folder)
    assert sorted(server.fetched) == ["sub/adapter_config.json", "sub/adapter_model.safetensors"]


def test_only_one_form_of_a_bases_weights_is_downloaded(server, tmp_path):
    base = save_base(
        tmp_path / "base",
        weights_of(),
        shards=2,
        side_files={
            "tokenizer.json": b"{}",
            "pytorch_model.bin": b"old",
            "tf_model.h5": b"old",
            "onnx/model.onnx": b"old",
            ".gitattributes": b"lfs",
            "model-00007-of-00007.safetensors": b"of another time",
        },
    )
    commit = server.add("me/base").commit_folder(base)
    path = sources.model("me/base")
    assert sorted(server.fetched) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    assert os.path.basename(path) == commit
    adapter = adapter_of()
    merge.write(merge.plan(adapter, path), tmp_path / "out")
    assert set(tensors_in(tmp_path / "out")) == set(weights_of())
    server.asked.clear()
    assert sources.config("me/base") == path


def test_names_from_a_server_cannot_leave_the_cache(server):
    evil = {"../../x.vblora": b"", "/etc/x.vblora": b"", "a\\x.vblora": b"", "a/../x.vblora": b""}
    server.add("me/evil").commit(evil)
    with pytest.raises(errors.SourceError, match=r"no \.vblora file .*: found nothing"):
        sources.packed("me/evil")
    index = {"metadata": {}, "weight_map": {"w": "../../x.safetensors"}}
    server.add("me/base").commit({"model.safetensors.index.json": json.dumps(index).encode()})
    with pytest.raises(errors.SourceError, match="a shard outside the folder"):
        sources.model("me/base")


@pytest.mark.parametrize("commit", ["../../../../evil", "/tmp/evil", "a/b", "x\x1b[2J", ""])
def test_an_invalid_commit_creates_no_folder_outside_the_cache(server, folder, tmp_path, commit):
    """huggingface_hub creates a folder named after the commit that the server reports."""
    repository = server.add("me/evil")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    repository.commits[commit] = files
    repository.revisions["main"] = commit
    before = {path for path in tmp_path.rglob("*") if "evil" in path.name}
    with pytest.raises(errors.SourceError) as error:
        sources.checkpoint("me/evil")
    assert str(error.value).isprintable()
    after = {path for path in tmp_path.rglob("*") if "evil" in path.name}
    assert {path.name for path in after - before} <= {"models--me--evil"}


def test_the_base_is_downloaded_at_the_revision_of_training(tmp_path):
    import dataclasses

    plain = worked_example()
    named = dataclasses.replace(plain, base_model="me/base", base_revision="abc")
    assert sources.revision_for("me/base", [plain, named]) == "abc"
    assert sources.revision_for("me/other", [named]) is None
    assert sources.revision_for("hf://me/base@main", [named]) is None
    assert sources.revision_for(str(tmp_path), [named]) is None


def test_without_huggingface_hub_a_missing_path_is_an_error(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(errors.SourceError, match=r"no such file or folder: me/x; .*vbfmt\[hub\]"):
        sources.checkpoint("me/x")
    for source in ("hf://me/x", "https://huggingface.co/me/x"):  # these cannot be paths
        with pytest.raises(errors.MissingExtraError, match=rf"{source}; .*'vbfmt\[hub\]'"):
            sources.checkpoint(source)
    save(worked_example(), tmp_path / "x.vblora")
    assert sources.packed(str(tmp_path / "x.vblora")) == str(tmp_path / "x.vblora")


def test_a_checkpoint_in_a_repository_can_be_trained_further(server, tmp_path):
    pytest.importorskip("torch")
    from tests.torch.models import batch, config, net
    from vbfmt.torch import inject, load_checkpoint, save_checkpoint

    model, (x, _) = net(), batch()
    inject(model, config())
    save_checkpoint(model, tmp_path / "checkpoint")
    files = {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}
    server.add("me/trained").commit(files)
    fresh = net()
    load_checkpoint(fresh, "hf://me/trained")
    assert fresh(x).equal(model(x))
    with pytest.raises(errors.SourceError):
        load_checkpoint(net(), "hf://me/nothing")
