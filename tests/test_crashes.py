"""Killed processes, exhausted limits and concurrent writers: the scenes of `tests.crashes`."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="forks, kills and limits as Linux has them"
)


@pytest.fixture
def play(tmp_path):
    """Run a scene in a new process and return its results."""

    def play(scene: str, count: int) -> dict[str, int]:
        done = subprocess.run(
            [sys.executable, "-m", "tests.crashes", scene, str(tmp_path), str(count)],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr
        seen: dict[str, int] = json.loads(done.stdout)
        print(scene, seen)
        return seen

    return play


@pytest.mark.parametrize("count", [100, pytest.param(1500, marks=pytest.mark.slow)])
def test_a_killed_writer_leaves_the_old_or_the_new_output(play, count):
    seen = play("kill", count)
    assert seen["old"] + seen["new"] >= count
    assert seen["killed"] > count / 2
    # Kills came during writing, and before and after the last step.
    assert seen["left something behind"] > count / 10
    assert min(seen["old"], seen["new"]) > count / 20


@pytest.mark.parametrize("count", [50, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_limit_of_file_size_leaves_the_old_file(play, count):
    assert play("size_limit", count)["refused"] >= count


@pytest.mark.usefixtures("unmeasured")  # coverage allocates, too
def test_a_failed_allocation_leaves_the_old_or_the_new_output(play):
    pytest.importorskip("_testcapi", reason="this Python was built without it")
    assert play("memory", 0)["failed"] > 100


def test_too_little_memory_is_reported(play):
    seen = play("address_space", 16)
    assert seen["written"] > 0
    assert seen["MemoryError"] > 0


def test_eight_concurrent_writers_of_one_path_and_a_reader(play):
    seen = play("writers", 20)
    assert seen["reads"] > 20
    assert seen["writers seen"] > 1


def test_one_of_eight_processes_that_create_one_path_succeeds(play):
    assert play("first_wins", 4)["races"] == 16


def test_eight_processes_that_replace_one_folder_do_not_mix_files(play):
    assert play("folders", 3)["rounds"] == 6


def test_a_read_only_folder_is_refused(play):
    assert play("read_only", 0)["refused"] == 2


def test_truncating_a_file_ends_only_processes_that_have_mapped_it(play):
    """The docstring of `load` says so. Without mapping, later changes of the file have no
    effect."""
    assert play("cut_off", 0) == {"mapped": -7, "read": 0}


@pytest.mark.parametrize("count", [20, pytest.param(250, marks=pytest.mark.slow)])
def test_killed_writers_leave_a_store_complete(play, count):
    seen = play("store_writers", count)
    assert seen["killed"] >= 2 * count
    assert seen["names"] > 0


@pytest.mark.parametrize("count", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_a_killed_job_is_completed_by_the_next_run(play, count):
    seen = play("jobs_killed", count)
    assert seen["killed"] >= count
    assert seen["done before"] > 0


@pytest.mark.parametrize("count", [10, pytest.param(500, marks=pytest.mark.slow)])
def test_a_job_whose_pool_is_killed_loses_nothing_and_leaves_no_process(play, count):
    seen = play("pool_killed", count)
    assert min(seen["jobs"], seen["workers"]) > 0


def test_a_full_disk_loses_nothing_of_a_store_or_a_job(tmp_path):
    """This test mounts a private file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    own = ["unshare", "--map-root-user", "--mount"]
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)]
    if (
        not shutil.which("unshare")
        or subprocess.run([*own, *mount], capture_output=True).returncode
    ):
        pytest.skip("needs a mount namespace of its own")
    script = f'{shlex.join(mount)} && exec "$@"'
    play = [sys.executable, "-m", "tests.crashes", "disk_full", str(disk)]
    done = subprocess.run(
        [*own, "sh", "-c", script, "sh", *play],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["added"] > 10
    assert (seen["refused"], seen["jobs refused"]) == (3, 1)
