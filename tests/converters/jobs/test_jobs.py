"""Jobs over many adapters: complete, resumable, and the same with any number of workers."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.converters.test_peft import logits_form, write_folder
from vbfmt import errors, load, verify
from vbfmt.converters import jobs
from vbfmt.converters.jobs import journal, tasks
from vbfmt.converters.jobs.run import _divided as divided
from vbfmt.converters.operations.pack import pack

COUNT = 12


@pytest.fixture
def checkpoints(tmp_path):
    """Return twelve checkpoints, one of them broken."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for number in range(COUNT):
        write_folder(folder / f"user{number:02}", logits_form(seed=number))
    (folder / "user07" / "adapter_model.safetensors").write_bytes(b"broken")
    return folder


def run(checkpoints, output, *, operation="pack", workers=1, engine="pool", **options):
    task = jobs.Task(operation, options)
    found = jobs.collected([f"{checkpoints}/*"])
    return list(jobs.run(task, jobs.items(found, output, task), workers=workers, engine=engine))


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.vblora"))}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_input_is_named_and_the_others_are_processed(checkpoints, tmp_path, workers):
    outcomes = run(checkpoints, tmp_path / "packed", workers=workers)
    failed = [each for each in outcomes if each.status == "failed"]
    assert [os.path.basename(each.source) for each in failed] == ["user07"]
    assert failed[0].kind == "source"
    assert len(files(tmp_path / "packed")) == COUNT - 1
    assert all(verify(tmp_path / "packed" / name) for name in files(tmp_path / "packed"))


def test_any_number_of_workers_writes_what_pack_writes(checkpoints, tmp_path):
    run(checkpoints, tmp_path / "one", workers=1)
    run(checkpoints, tmp_path / "two", workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    pack(checkpoints / "user00", tmp_path / "x.vblora")
    assert files(tmp_path / "one")["user00.vblora"] == (tmp_path / "x.vblora").read_bytes()


def test_a_finished_item_is_skipped_unless_its_source_changes(checkpoints, tmp_path):
    output = tmp_path / "packed"
    run(checkpoints, output)
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.vblora")}
    again = run(checkpoints, output)
    assert [each.status for each in again].count("present") == COUNT - 1
    assert {path.name: path.stat().st_mtime_ns for path in output.glob("*.vblora")} == before
    for path in (checkpoints / "user03").iterdir():
        path.unlink()
    (checkpoints / "user03").rmdir()
    write_folder(checkpoints / "user03", logits_form(seed=99))
    third = {os.path.basename(each.source): each for each in run(checkpoints, output)}
    assert third["user03"].status == "done"
    assert third["user04"].status == "present"


def test_a_repository_is_never_skipped(tmp_path):
    """It may have changed on the Hub. The output belongs to this job and is written again."""
    task = jobs.Task("expand")
    item = jobs.Item("owner/name", str(tmp_path / "out" / "name"))
    first = journal.Journal(str(tmp_path / "out"), task)
    first.begin([item])
    (tmp_path / "out" / "name").mkdir()
    first.end([(item, jobs.Outcome(item.source, item.output, "done", "sha256:0"))])
    second = journal.Journal(str(tmp_path / "out"), task)
    assert second.digest_if_done(item) is None
    assert second.is_begun(item)


def test_different_options_are_a_different_job(checkpoints, tmp_path):
    run(checkpoints, tmp_path / "packed")
    again = run(checkpoints, tmp_path / "packed", base_model="some/base")
    assert {each.status for each in again} == {"done", "failed"}
    assert load(tmp_path / "packed" / "user00.vblora").base_model == "some/base"


def test_a_file_that_no_job_wrote_is_never_replaced(checkpoints, tmp_path):
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "user00.vblora").write_bytes(b"precious")
    outcomes = {
        os.path.basename(each.source): each for each in run(checkpoints, tmp_path / "packed")
    }
    assert (outcomes["user00"].status, outcomes["user00"].kind) == ("failed", "exists")
    assert (tmp_path / "packed" / "user00.vblora").read_bytes() == b"precious"


def test_a_file_in_place_of_an_output_is_an_error_and_is_kept(checkpoints, tmp_path):
    run(checkpoints, tmp_path / "packed")
    other = (tmp_path / "packed" / "user01.vblora").read_bytes()
    (tmp_path / "packed" / "user00.vblora").write_bytes(other)
    found = run(checkpoints, tmp_path / "packed")
    outcomes = {os.path.basename(each.source): each for each in found}
    assert (outcomes["user00"].status, outcomes["user00"].kind) == ("failed", "exists")
    assert (tmp_path / "packed" / "user00.vblora").read_bytes() == other


def test_a_folder_in_place_of_an_output_is_an_error_and_is_kept(checkpoints, tmp_path):
    run(checkpoints, tmp_path / "packed")
    found = jobs.collected([f"{tmp_path}/packed/*.vblora"])
    task = jobs.Task("expand")
    items = jobs.items(found, tmp_path / "loras", task)
    assert {each.status for each in jobs.run(task, items, workers=1)} == {"done"}
    assert {each.status for each in jobs.run(task, items, workers=1)} == {"present"}
    replaced = tmp_path / "loras" / "user00"
    shutil.rmtree(replaced)
    shutil.copytree(tmp_path / "loras" / "user01", replaced)
    before = (replaced / "adapter_model.safetensors").read_bytes()
    outcomes = {os.path.basename(each.output): each for each in jobs.run(task, items, workers=1)}
    assert (outcomes["user00"].status, outcomes["user00"].kind) == ("failed", "exists")
    assert outcomes["user01"].status == "present"
    assert (replaced / "adapter_model.safetensors").read_bytes() == before


def test_the_output_of_a_failed_item_does_not_belong_to_the_job(checkpoints, tmp_path):
    run(checkpoints, tmp_path / "packed")
    (tmp_path / "packed" / "user07.vblora").write_bytes(b"precious")
    write_folder(checkpoints / "again", logits_form(seed=7))
    for path in (checkpoints / "again").iterdir():
        path.replace(checkpoints / "user07" / path.name)
    (checkpoints / "again").rmdir()
    found = run(checkpoints, tmp_path / "packed")
    outcomes = {os.path.basename(each.source): each for each in found}
    assert (outcomes["user07"].status, outcomes["user07"].kind) == ("failed", "exists")
    assert (tmp_path / "packed" / "user07.vblora").read_bytes() == b"precious"


def test_a_truncated_journal_is_read_up_to_its_end(checkpoints, tmp_path):
    run(checkpoints, tmp_path / "packed")
    path = tmp_path / "packed" / journal.NAME
    path.write_bytes(path.read_bytes()[:-20])
    again = run(checkpoints, tmp_path / "packed")
    assert sum(each.ok for each in again) == COUNT - 1
    assert [each.status for each in run(checkpoints, tmp_path / "packed")].count("present") == 11


def test_a_job_that_is_killed_at_any_moment_is_finished_by_the_next(checkpoints, tmp_path):
    expected = tmp_path / "expected"
    run(checkpoints, expected)
    script = (
        "from vbfmt.converters import jobs\n"
        "task = jobs.Task('pack')\n"
        f"found = jobs.collected(['{checkpoints}/*'])\n"
        f"list(jobs.run(task, jobs.items(found, '{tmp_path / 'packed'}', task), workers=1))\n"
    )
    for delay in (0.25, 0.3, 0.35, 0.4, 0.45, 0.5):
        done = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
        time.sleep(delay)
        done.send_signal(signal.SIGKILL)
        done.wait()
    outcomes = run(checkpoints, tmp_path / "packed")
    assert [each.status for each in outcomes if not each.ok] == ["failed"]
    assert files(tmp_path / "packed") == files(expected)


def test_the_shard_of_a_killed_worker_is_done_by_another(checkpoints, tmp_path):
    """Any process of the pool may be killed."""
    killed = []

    def kill_once(outcomes):
        for outcome in outcomes:
            if not killed:
                for child in multiprocessing.active_children():
                    os.kill(child.pid, signal.SIGKILL)
                    killed.append(child.pid)
            yield outcome

    task = jobs.Task("pack")
    found = jobs.collected([f"{checkpoints}/*"])
    items = jobs.items(found, tmp_path / "packed", task)
    outcomes = list(kill_once(jobs.run(task, items, workers=2, shard=1)))
    assert killed
    assert len(outcomes) == COUNT
    assert [os.path.basename(each.source) for each in outcomes if not each.ok] == ["user07"]
    assert len(files(tmp_path / "packed")) == COUNT - 1


DEADLY = """
import os, sys, time
from vbfmt.converters import jobs
from vbfmt.converters.jobs import tasks

def deadly(task, item):
    if item.source.startswith("deadly"):
        os._exit(9)
    if item.source.startswith("slow"):
        open(f"{item.source}.{os.getpid()}", "w").close()
        try:
            time.sleep(600)
        finally:
            open(f"{item.source}.ended", "w").close()
    if item.source == "faulty":
        1 / 0
    return item.source, None

tasks.OPERATIONS["verify"] = deadly

class Here:
    pass  # an option that is defined here, so that the workers run this script, too

def main():
    items = [jobs.Item(source) for source in sys.argv[1:]]
    for outcome in jobs.run(jobs.Task("verify", {"x": Here()}), items, workers=2, shard=4):
        print(outcome.source, outcome.status, outcome.kind, flush=True)

if __name__ == "__main__":
    main()
"""


def deadly(folder, *sources):
    (folder / "script.py").write_text(DEADLY)
    return subprocess.Popen(
        [sys.executable, "script.py", *sources],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_an_item_that_kills_its_worker_is_named_and_the_job_continues(tmp_path):
    sources = [f"item{number}" for number in range(40)]
    sources[13] = "deadly13"
    output, _ = deadly(tmp_path, *sources).communicate(timeout=300)
    found = dict(line.split(" ", 1) for line in output.splitlines())
    assert found.pop("deadly13") == "failed worker"
    assert found == dict.fromkeys([s for s in sources if s != "deadly13"], "done None")


def test_a_job_ends_if_every_worker_dies(tmp_path):
    sources = [f"deadly{number}" for number in range(40)]
    output, _ = deadly(tmp_path, *sources).communicate(timeout=300)
    assert sorted(output.splitlines()) == sorted(f"{s} failed worker" for s in sources)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 1)]
)
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes")
def test_workers_end_with_the_process_that_started_the_job(tmp_path, number, status):
    process = deadly(tmp_path, "slow1", "slow2")
    until = time.monotonic() + 120
    while len(left := list(tmp_path.glob("slow*"))) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate()
    assert process.returncode in (status, -number)
    pids = [int(path.suffix[1:]) for path in left]
    if number != signal.SIGKILL:
        assert sorted(path.name for path in tmp_path.glob("*.ended")) == [
            "slow1.ended",
            "slow2.ended",
        ]
    while any(os.path.isdir(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < until, "workers are left"
        time.sleep(0.05)


def test_a_bug_in_an_operation_is_raised_with_its_traceback(tmp_path):
    process = deadly(tmp_path, *(f"item{number}" for number in range(12)), "faulty")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "RuntimeError: a worker process failed:" in error
    assert "ZeroDivisionError" in error


@pytest.mark.parametrize(("count", "workers"), [(1, 2), (5, 2), (100, 8), (5000, 2), (300, 1)])
def test_shards_cover_all_items_and_become_smaller(count, workers):
    items = [jobs.Item(str(number)) for number in range(count)]
    shards = list(divided(items, workers, 256))
    assert [item for shard in shards for item in shard] == items
    sizes = [len(shard) for shard in shards]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) <= 256
    assert sizes[-1] <= max(1, min(16, count // (16 * workers)))


@pytest.mark.parametrize("operation", ["verify", "expand", "diff"])
def test_every_operation_on_packed_files(checkpoints, tmp_path, operation):
    run(checkpoints, tmp_path / "packed")
    found = jobs.collected([f"{tmp_path}/packed/*.vblora"])
    task = jobs.Task(operation)
    if operation == "expand":
        items = jobs.items(found, tmp_path / "out", task)
    else:
        items = [jobs.Item(each, each if operation == "diff" else "") for each in found]
    outcomes = list(jobs.run(task, items, workers=1))
    assert {each.status for each in outcomes} == {"done"}
    assert len(outcomes) == COUNT - 1
    if operation == "expand":
        assert (tmp_path / "out" / "user00" / "adapter_config.json").is_file()


def test_a_difference_is_an_outcome(checkpoints, tmp_path):
    run(checkpoints, tmp_path / "packed")
    one, two = (str(tmp_path / "packed" / f"user0{number}.vblora") for number in (0, 1))
    (outcome,) = jobs.run(jobs.Task("diff"), [jobs.Item(one, two)], workers=1)
    assert (outcome.status, outcome.ok) == ("different", False)
    assert outcome.message


def test_inputs_are_collected_from_patterns_and_a_list_once_each(tmp_path):
    for name in ("a", "b", "[c]"):
        (tmp_path / name).mkdir()
    listed = io.StringIO(f"{tmp_path}/b\n\n{tmp_path}/x\n")
    found = jobs.collected([f"{tmp_path}/?", "-", f"{tmp_path}/[c]"], listed)
    assert found == [f"{tmp_path}/{name}" for name in ("a", "b", "x", "[c]")]
    with pytest.raises(errors.MissingSourceError, match="no file or folder matches"):
        jobs.collected([f"{tmp_path}/none*"])


def test_two_inputs_with_one_output_are_refused():
    task = jobs.Task("pack")
    with pytest.raises(errors.ConfigError, match=r"found a/User and b/user"):
        jobs.items(["a/User", "b/user"], "out", task)


def test_two_items_with_one_output_are_refused_in_any_input(checkpoints, tmp_path):
    items = [jobs.Item("a", f"{tmp_path}/out/x"), jobs.Item("b", f"{tmp_path}/out/X")]
    with pytest.raises(errors.ConfigError, match="two inputs would have the same output"):
        list(jobs.run(jobs.Task("expand"), items))


@pytest.mark.parametrize("number", [0, -1, 2.5])
@pytest.mark.parametrize("name", ["workers", "shard"])
def test_a_number_below_one_is_refused(name, number):
    with pytest.raises(errors.ConfigError, match=f"invalid number: `{name}`"):
        list(jobs.run(jobs.Task("verify"), [jobs.Item("a"), jobs.Item("b")], **{name: number}))


def test_an_unknown_engine_is_refused(checkpoints, tmp_path):
    with pytest.raises(errors.ConfigError, match="unknown engine"):
        run(checkpoints, tmp_path / "packed", engine="spark")


def test_the_command_line(checkpoints, tmp_path):
    def vbfmt(*words, **options):
        command = [sys.executable, "-m", "vbfmt", "jobs", *map(str, words)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)

    first = vbfmt("pack", f"{checkpoints}/*", "-o", tmp_path / "packed", "-j", 2)
    assert first.returncode == 1
    assert first.stdout.splitlines()[-1] == "11 done, 1 failed"
    assert "user07: FAILED, not a safetensors file" in first.stdout
    names = "\n".join(str(path) for path in sorted((tmp_path / "packed").glob("*.vblora")))
    second = vbfmt("verify", "-", "--json", input=names)
    assert second.returncode == 0
    lines = [json.loads(line) for line in second.stdout.splitlines()]
    assert [line["status"] for line in lines] == ["done"] * 11
    assert all(line["digest"].startswith("sha256:") for line in lines)
    assert vbfmt("verify").returncode == 2


def test_names_of_outputs():
    assert tasks.name_of("a/b.vblora/") == "b"
    assert tasks.name_of("a/user.v1") == "user.v1"
