"""Jobs started from scripts, threads and daemons, and file names that are not UTF-8."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.converters.test_peft import logits_form, write_folder
from vbfmt.converters import jobs
from vbfmt.converters.operations.pack import pack

posix = pytest.mark.skipif(sys.platform == "win32", reason="bytes in names, signals of POSIX")

JOB = """
import sys
from vbfmt.converters import jobs

def outcomes():
    return jobs.run(jobs.Task("verify"), [jobs.Item(f) for f in sys.argv[1:]], workers=2, shard=1)
"""


@pytest.fixture
def packed(tmp_path):
    """Six packed files."""
    write_folder(tmp_path / "checkpoint", logits_form(seed=1))
    paths = [str(tmp_path / f"{number}.vblora") for number in range(6)]
    for path in paths:
        pack(tmp_path / "checkpoint", path)
    return paths


def run(tmp_path, packed, text, *, given=False):
    """Run a script, from a file or as standard input."""
    (tmp_path / "script.py").write_text(JOB + text)
    return subprocess.run(
        [sys.executable, "-" if given else "script.py", *packed],
        input=JOB + text if given else "",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("given", [False, True], ids=["file", "standard input"])
def test_a_script_needs_no_main_guard(tmp_path, packed, given):
    done = run(tmp_path, packed, "print([o.status for o in outcomes()])", given=given)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{['done'] * len(packed)}\n"


def test_the_interpreter_may_exit_during_a_job(tmp_path, packed):
    done = run(tmp_path, packed, "half = outcomes()\nprint(next(half).status)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_daemonic_process_runs_a_job_without_workers(tmp_path, packed):
    text = """
def work():
    print([o.status for o in outcomes()])

if __name__ == "__main__":
    import multiprocessing
    process = multiprocessing.Process(target=work, daemon=True)
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""
    done = run(tmp_path, packed, text)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{['done'] * len(packed)}\n"


def test_jobs_in_threads_do_not_change_the_environment(tmp_path, packed):
    text = """
import os, threading
before = dict(os.environ)
found = []
threads = [threading.Thread(target=lambda: found.extend(outcomes())) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(found), {o.status for o in found}, dict(os.environ) == before)
"""
    done = run(tmp_path, packed, text)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{4 * len(packed)} {{'done'}} True\n"


@posix
def test_an_interrupt_during_the_start_prints_one_word(tmp_path, packed):
    for wait in (0.1, 0.2, 0.3, 0.4):
        process = subprocess.Popen(
            [sys.executable, "-c", WAITS, *packed],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        time.sleep(wait)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert error == "interrupted\n", wait


WAITS = """
import sys, time
from vbfmt.converters.jobs import Task, pool
try:
    pool.prepare(Task("expand"), 2)
    print("started", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
"""


@posix
def test_file_names_need_not_be_utf8(tmp_path):
    source = os.fsdecode(os.fsencode(tmp_path) + b"/checkpoint\xff")
    try:
        write_folder(tmp_path / "checkpoint", logits_form(seed=1))
        os.rename(tmp_path / "checkpoint", source)
    except OSError:
        pytest.skip("the file system accepts only UTF-8")
    task = jobs.Task("pack")
    for status in ("done", "present"):
        items = jobs.items([source], tmp_path / "packed", task)
        assert [each.status for each in jobs.run(task, items)] == [status]
    listed = subprocess.run(
        [sys.executable, "-m", "vbfmt", "jobs", "pack", "-", "-o", tmp_path / "packed"],
        input=os.fsencode(source) + b"\n",
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
    )
    assert (listed.returncode, listed.stderr) == (0, b"")
    assert listed.stdout == b"1 done\n"
