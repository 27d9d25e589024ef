"""``vbfmt store``."""

from __future__ import annotations

import json
import os

import pytest

from tests.store.adapters import adapter
from vbfmt import digest, save
from vbfmt.cli import store as command
from vbfmt.errors import ConflictError
from vbfmt.store import Store, layout


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{number}.vblora" for number in range(3)]
    for number, path in enumerate(paths):
        save(adapter(number), path)
    return paths


def test_the_life_of_an_adapter(vbfmt, tmp_path, files):
    store = tmp_path / "s"
    done = vbfmt("store", "add", store, *files, "--name", "a", "--name", "b", "--name", "c")
    assert done.code == 0
    assert done.out.splitlines()[1] == f"{digest(adapter(1))}  {files[1]}  b"
    listed = json.loads(vbfmt("store", "list", store, "--base-model", "base", "--json").out)
    assert {tuple(one["names"]) for one in listed} == {("a",), ("b",), ("c",)}
    assert vbfmt("store", "list", store, "--metadata", "number=1").out.count("\n") == 1
    out = tmp_path / "out.vblora"
    assert vbfmt("store", "get", store, "b", "-o", out).code == 0
    assert out.read_bytes() == files[1].read_bytes()
    thin = tmp_path / "thin" / "t.vblora"
    assert vbfmt("store", "get", store, "b", "-o", thin, "--bank", "external").code == 0
    assert len(os.listdir(thin.parent)) == 2
    assert vbfmt("verify", thin).code == 0
    assert vbfmt("store", "tag", store, "b", digest(adapter(2))).code == 1
    moved = vbfmt("store", "tag", store, "b", "c", "--replaces", digest(adapter(1)))
    assert moved.out == f"b → {digest(adapter(2))}\n"
    assert "7 objects and names checked, 0 failed" in vbfmt("store", "verify", store).out
    assert "0 objects removed" in vbfmt("store", "gc", store).out
    assert "1 object found unneeded" in vbfmt("store", "stats", store).out
    assert json.loads(vbfmt("store", "gc", store, "--grace", "0", "--json").out)["bytes"] > 0
    assert vbfmt("store", "remove", store, "a", "b").code == 0
    assert json.loads(vbfmt("store", "stats", store, "--json").out)["names"] == 1


def test_a_fault_in_the_store_is_named(vbfmt, tmp_path, files):
    store = tmp_path / "s"
    vbfmt("store", "add", store, files[0], "--name", "a")
    (path,) = (store / "adapters").rglob("*.vblora")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    done = vbfmt("store", "verify", store)
    assert done.code == 1
    assert f"{path}: FAILED, damaged in {path}: weights" in done.out
    answer = json.loads(vbfmt("store", "verify", store, "--json").out)
    assert (answer["ok"], answer["checked"]) == (False, 3)
    assert vbfmt("store", "get", store, "a", "-o", tmp_path / "o").code == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (
            ("get", "S", "alcie", "-o", "O"),
            1,
            "with that name in S: alcie: expected a name",
        ),
        (("get", "S", "sha256:" + "0" * 64, "-o", "O"), 1, "no such adapter in S"),
        (("get", "S", "sha256:12", "-o", "O"), 1, "not a digest: found 'sha256:12'"),
        (("get", "S", "../../etc/passwd", "-o", "O"), 1, "invalid name for an adapter"),
        (("list", "S", "--bank", "x"), 1, "of a bank: found 'x', expected 64 hexadecimal digits"),
        (
            ("add", "S", "F", "--name", "alice"),
            1,
            "choose another name, or change this one: --force",
        ),
        (("tag", "S", "bob", "alice", "--replaces", "sha256:1"), 1, "not a digest"),
        (("tag", "S", "bob", "alice", "--replaces", "sha256:" + "1" * 64), 1, "no such name in S"),
        (("tag", "S", "ALICE", "alice"), 1, "a name that differs only in case exists in S"),
        (("remove", "S", "bob"), 1, "no adapter with that name in S"),
        (("list", "T"), 1, "not a vbfmt store in T: found no store.json"),
        (("add", "T", "F"), 1, "not a vbfmt store, and not empty in T"),
        (("add", "F", "S"), 1, "found a file, expected a folder; give the store first"),
        (("add", "S", "F", "--name", "a", "--name", "b"), 2, "2 --name for 1 files"),
        (("list", "S", "--metadata", "x"), 2, "--metadata must be KEY=VALUE"),
        (("gc", "S", "--grace", "-1"), 2, "--grace must be a number of hours"),
        (("tag", "S", "a", "b", "--force", "--replaces", "x"), 2, "exclude each other"),
    ],
)
def test_an_impossible_request_is_one_line_and_changes_nothing(
    vbfmt, tmp_path, files, words, code, line
):
    store, other = tmp_path / "s", tmp_path / "t"
    vbfmt("store", "add", store, files[0], "--name", "alice")
    other.mkdir()
    (other / "x").write_bytes(b"")
    paths = {"S": store, "T": other, "F": files[1], "O": tmp_path / "o"}
    before = {path for path in tmp_path.rglob("*") if "catalog" not in path.name}
    done = vbfmt("store", *(paths.get(word, word) for word in words))
    assert done.code == code
    for letter, path in paths.items():
        line = line.replace(f" {letter}", f" {path}")
    assert line in done.err
    assert done.err.count("\n") == 1 or code == 2
    after = {path for path in tmp_path.rglob("*") if "catalog" not in path.name}
    assert after - {store / "lock"} == before - {store / "lock"}


def test_a_name_that_is_taken_adds_nothing(vbfmt, tmp_path, files):
    store = tmp_path / "s"
    vbfmt("store", "add", store, files[0], "--name", "alice")
    before = vbfmt("store", "stats", store).out
    taken = vbfmt("store", "add", store, files[1], "--name", "alice")
    assert (taken.code, taken.out) == (1, "")
    assert taken.err.endswith("choose another name, or change this one: --force\n")
    assert vbfmt("store", "stats", store).out == before
    assert vbfmt("store", "add", store, files[0], "--name", "alice").code == 0  # the same adapter
    assert vbfmt("store", "add", store, files[1], "--name", "alice", "--force").code == 0
    assert vbfmt("store", "stats", store).out.startswith("2 adapters")


@pytest.mark.parametrize("added", [1e15, -1e12, 9223372036854775.0, 1e300])
def test_an_impossible_file_time_gives_no_traceback(added):
    """A file in a store may have any modification time."""
    assert command._time(added) == "unknown time"
    assert command._time(86400.0 * 365).startswith("197")


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("names", ["xx", "xX"])
def test_one_name_for_two_files_is_wrong_usage(vbfmt, tmp_path, files, force, names):
    """The second adapter would replace the first under that name."""
    options = [word for name in names for word in ("--name", name)]
    result = vbfmt("store", "add", tmp_path / "s", *files[:2], *options, *force)
    assert result.code == 2
    assert f"the name {names[1]} is given twice" in result.err
    assert not (tmp_path / "s").exists()


def test_nothing_is_added_if_a_name_is_invalid(vbfmt, tmp_path, files):
    result = vbfmt("store", "add", tmp_path / "s", *files[:2], "--name", "x", "--name", "a b")
    assert (result.code, "invalid name" in result.err) == (1, True)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("words", [["x", "x"], ["x", digest(adapter(0))], ["x", "a b"]])
def test_nothing_is_removed_if_a_name_is_wrong(vbfmt, tmp_path, files, words):
    vbfmt("store", "add", tmp_path / "s", files[0], "--name", "x")
    assert vbfmt("store", "remove", tmp_path / "s", *words).code in (1, 2)
    assert vbfmt("store", "get", tmp_path / "s", "x", "-o", tmp_path / "y.vblora").code == 0


def test_after_a_failure_json_has_what_was_added(vbfmt, tmp_path, files):
    """Earlier, there was one error for all, and nobody knew which files were in the store."""
    files[1].write_bytes(b"no adapter")
    done = vbfmt("store", "add", tmp_path / "s", *files, "--json")
    assert done.code == 1
    assert [one["file"] for one in json.loads(done.out)] == [str(files[0])]
    assert done.err.startswith("error: not a packed VB-LoRA adapter")
    assert str(files[1]) in done.err
    assert done.err.count("\n") == 1
    assert vbfmt("store", "stats", tmp_path / "s").out.startswith("1 adapter,")
    first = vbfmt("store", "add", tmp_path / "s", files[1], files[2], "--json")
    assert (first.code, first.err) == (1, "")
    assert json.loads(first.out)["error"]["kind"] == "magic"


def test_after_a_failure_json_has_what_was_removed(vbfmt, tmp_path, files, monkeypatch):
    names = [word for name in "abc" for word in ("--name", name)]
    vbfmt("store", "add", tmp_path / "s", *files, *names)
    untag = Store.untag

    def failing(self, name):
        if name == "b":
            raise ConflictError("the name points to another digest", part=name)
        untag(self, name)

    monkeypatch.setattr(Store, "untag", failing)
    done = vbfmt("store", "remove", tmp_path / "s", "a", "b", "c", "--json")
    assert (done.code, json.loads(done.out)) == (1, {"removed": {"a": digest(adapter(0))}})
    assert done.err == "error: the name points to another digest: b\n"


def test_a_damaged_name_is_reported_beside_the_others(vbfmt, tmp_path, files):
    """Earlier, it was the only line of the list."""
    store = tmp_path / "s"
    vbfmt("store", "add", store, *files[:2], "--name", "a", "--name", "b")
    (record,) = store.glob("names/*/a")
    record.write_text("{")
    for words in ((), ("--quiet",)):
        done = vbfmt("store", "list", store, "--json", *words)
        assert done.code == 1
        assert sorted(one["names"] for one in json.loads(done.out)) == [[], ["b"]]
        assert done.err.startswith(f"error: a name's record is damaged in {record}: found")
        assert done.err.count("\n") == 1
    plain = vbfmt("store", "list", store)
    assert (plain.code, plain.out.count("\n"), plain.err) == (1, 2, done.err)
    stats = vbfmt("store", "stats", store)
    assert (stats.code, "1 name\n" in stats.out) == (0, True)
    assert stats.err.startswith("note: a name's record is damaged")
    jobs = vbfmt("jobs", "verify", "--from-store", store)
    assert (jobs.code, jobs.out, jobs.err) == (1, "1 done\n", done.err)
    assert vbfmt("store", "gc", store).code == 1
    removed = vbfmt("store", "remove", store, "a")
    assert (removed.code, "record is damaged" in removed.err) == (1, True)
    assert vbfmt("store", "tag", store, "a", "b", "--force").code == 0
    assert vbfmt("store", "list", store).err == ""


def test_a_damaged_adapter_is_reported_beside_the_others(vbfmt, tmp_path, files):
    """It was left out with exit status 0."""
    store = tmp_path / "s"
    vbfmt("store", "add", store, *files[:2], "--name", "a", "--name", "b")
    bad = store / layout.adapter_key(digest(adapter(0)))
    content = bytearray(bad.read_bytes())
    content[40] ^= 0xFF  # in the header
    bad.write_bytes(content)
    os.unlink(store / "catalog.sqlite")
    for _ in range(2):
        done = vbfmt("store", "list", store, "--json")
        assert (done.code, [one["names"] for one in json.loads(done.out)]) == (1, [["b"]])
        assert done.err.startswith("error: ")
        assert bad.name[-20:] in done.err  # a long path is cut in its middle
        assert done.err.count("\n") == 1
    assert vbfmt("store", "add", store, files[0], "--force", "--name", "a").code == 0
