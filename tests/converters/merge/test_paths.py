"""Links in a base, aliases of its path, and files whose size is not what the system reports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.converters.merge.folders import adapter_of, others_beside, save_base, weights_of
from vbfmt import errors, save
from vbfmt.converters import merge
from vbfmt.converters.merge import paths

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links and mounts of POSIX")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def secret(tmp_path):
    file = tmp_path / "secret.json"
    file.write_text('{"password": "x"}')
    return file


def linked(folder, stored):
    """Return a folder of links to the files of another one."""
    folder.mkdir(parents=True)
    for path in stored.iterdir():
        (folder / path.name).symlink_to(os.path.relpath(path, folder))
    return folder


def test_links_into_the_hubs_cache_are_followed(tmp_path):
    repository = tmp_path / "models--owner--name"
    repository.mkdir()
    stored = save_base(repository / "blobs", weights_of())
    base = linked(repository / "snapshots" / COMMIT, stored)
    alias = tmp_path / "alias"
    alias.symlink_to(base)
    for path in (base, alias):
        merge.write(merge.plan(adapter_of(), path), tmp_path / "out", overwrite=True)
        assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
        assert (tmp_path / "out" / "config.json").read_bytes() == (
            base / "config.json"
        ).read_bytes()


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "sub/x"])
def test_a_link_that_leaves_the_base_is_refused_unless_allowed(tmp_path, base, secret, name):
    (base / "sub").mkdir()
    target = secret
    if name == "model.safetensors":
        target = tmp_path / "elsewhere"
        shutil.move(base / name, target)
    (base / name).unlink(missing_ok=True)
    (base / name).symlink_to(target)
    with pytest.raises(errors.SourceError, match=f"points outside its folder.*{name}.*`follow_l"):
        merge.plan(adapter_of(), base)
    merge.write(merge.plan(adapter_of(), base, follow_links=True), tmp_path / "out")
    if name in ("README.md", "sub/x"):
        assert (tmp_path / "out" / name).read_bytes() == secret.read_bytes()


def test_links_may_not_leave_the_repository_in_the_cache(tmp_path, secret):
    repository = tmp_path / "models--owner--name"
    base = save_base(repository / "snapshots" / COMMIT, weights_of())
    (base / "README.md").symlink_to(secret)
    with pytest.raises(errors.SourceError, match="points outside its folder"):
        merge.plan(adapter_of(), base)


def test_links_within_the_base_are_followed(tmp_path, base):
    (base / "copy.json").symlink_to("config.json")
    merge.write(merge.plan(adapter_of(), base), tmp_path / "out")
    assert (tmp_path / "out" / "copy.json").read_bytes() == (base / "config.json").read_bytes()


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="no /proc")
def test_a_file_of_another_size_than_reported_is_not_copied(tmp_path, base):
    (base / "README.md").symlink_to("/proc/self/environ")
    plan = merge.plan(adapter_of(), base, follow_links=True)
    with pytest.raises(errors.StorageError, match=r"cannot read .*README\.md.*its size differs"):
        merge.write(plan, tmp_path / "out")
    assert others_beside(tmp_path / "out") == ["base"]


def test_a_file_that_becomes_shorter_is_not_copied(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(bytes(3 << 20))
    blocks = paths.content(os.fspath(file))
    next(blocks)
    os.truncate(file, 1 << 20)
    with pytest.raises(errors.StorageError, match="its size differs"):
        list(blocks)


def test_a_pipe_is_not_copied(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(errors.StorageError, match="its size differs"):
        list(paths.content(os.fspath(tmp_path / "x")))


def test_folders_that_are_nested_too_deeply_are_one_line(base):
    path = base
    for _ in range(200):
        path = path / "d"
    path.mkdir(parents=True)
    with pytest.raises(errors.SourceError, match="too deep"):
        merge.plan(adapter_of(), base)


def test_1500_nested_folders_are_one_line(tmp_path, base):
    """Earlier, this raised a RecursionError. No path of more than 4096 characters can be opened."""
    here = os.getcwd()
    os.chdir(base)
    try:
        for _ in range(1500):
            os.mkdir("d" * 10)
            os.chdir("d" * 10)
    finally:
        os.chdir(here)
    save(adapter_of(), tmp_path / "a.vblora")
    with pytest.raises(errors.SourceError, match="too deep"):
        merge.plan(adapter_of(), base)
    subprocess.run(["rm", "-rf", base], check=True)  # too deep for os.makedirs


def test_too_many_files_are_refused(base, monkeypatch):
    monkeypatch.setattr(paths, "MOST_FILES", 3)
    monkeypatch.setattr(paths.tree, "__kwdefaults__", {"hidden": True, "most": 3})
    for number in range(4):
        (base / f"x{number}").touch()
    with pytest.raises(errors.SourceError, match="too many files"):
        merge.plan(adapter_of(), base)


IN_A_MOUNT = """
import os, subprocess, sys
from tests.converters.merge.folders import adapter_of
from vbfmt import errors
from vbfmt.converters import merge

top, inner, output = sys.argv[1:]
real, alias = os.path.join(top, "real"), os.path.join(top, "alias")
if subprocess.run(["mount", "--bind", os.path.join(real, inner), alias]).returncode:
    sys.exit(77)
base = os.path.join(real, "base")
plan = merge.plan(adapter_of(seed=2), base)
try:
    merge.write(plan, os.path.join(alias, output), overwrite=True)
except errors.TargetError as error:
    print(error)
    sys.exit(0)
sys.exit(1)
"""


@pytest.mark.parametrize(
    ("inner", "output"),
    [("", "base"), ("", "base/out"), ("base", "out"), ("base/sub", "out"), ("base/sub", "x/out")],
)
def test_an_alias_of_the_base_is_the_base(tmp_path, inner, output):
    """Earlier, a merge replaced its own base through a bind mount."""
    real = tmp_path / "real"
    real.mkdir()
    first = save_base(tmp_path / "first", weights_of())
    merge.write(merge.plan(adapter_of(), first), real / "base")
    (real / "base" / "sub" / "x").mkdir(parents=True)
    (real / "base" / "sub" / "x" / "file").touch()
    (tmp_path / "alias").mkdir()
    command = ["unshare", "--mount", sys.executable, "-c", IN_A_MOUNT, tmp_path, inner, output]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no mounts here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert "inside the base" in done.stdout


def test_a_base_within_the_output_is_not_replaced(tmp_path, base):
    out = tmp_path / "out"
    merge.write(merge.plan(adapter_of(), base), out)
    record = out / "vbfmt_merge.json"
    inner = out / "base"
    shutil.copytree(base, inner)
    names = [os.path.join("base", path.name) for path in inner.iterdir()]
    known = json.loads(record.read_text())
    record.write_text(json.dumps({**known, "files": [*known["files"], *names]}))
    with pytest.raises(errors.TargetError, match="the base is inside the output"):
        merge.write(merge.plan(adapter_of(), inner), out, overwrite=True)


def test_a_folder_with_the_same_prefix_is_not_inside(tmp_path):
    for name in ("a", "a/b", "ab"):
        (tmp_path / name).mkdir()
    top = os.fspath(tmp_path)
    assert paths.within(f"{top}/a/b/new/er", f"{top}/a")
    assert paths.within(f"{top}/a", f"{top}/a")
    assert not paths.within(f"{top}/ab", f"{top}/a")
    assert not paths.within(f"{top}/new", f"{top}/a")
    assert not paths.within(f"{top}/a", f"{top}/a/b")


def test_hidden_folders_are_copied_only_on_request(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").touch()
    (tmp_path / "seen").mkdir()
    assert [entry.path for entry in paths.tree(str(tmp_path), hidden=False)] == ["seen"]
    every = [entry.path for entry in paths.tree(str(tmp_path), hidden=True)]
    assert every == [".git", ".git/HEAD", "seen"]


def test_a_folder_that_cannot_be_read_is_one_error(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(errors.StorageError, match=f"cannot read {tmp_path}.*ermission denied"):
        list(paths.tree(str(tmp_path)))


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="only Linux can tell")
def test_a_link_put_in_place_after_the_plan_is_not_copied(tmp_path):
    """A file of the base is replaced by a link out of it before it is copied."""
    base = save_base(tmp_path / "base", weights_of(), side_files={"tokenizer.json": b"{}"})
    (tmp_path / "secret").write_text("theirs")
    plan = merge.plan(adapter_of(), base)
    (base / "tokenizer.json").unlink()
    (base / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(errors.SourceError, match=r"became a link.*found a link to .*secret"):
        merge.write(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge.write(merge.plan(adapter_of(), base, follow_links=True), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "theirs"
