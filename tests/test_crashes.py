"""Killed, starved, crowded: what `tests.crashes` sees in processes of its own."""

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
    """Play a scene; what was seen."""

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
def test_killed_at_any_moment_the_old_or_the_new_is_there_and_nothing_else_soon(play, count):
    seen = play("kill", count)
    assert seen["old"] + seen["new"] >= count
    assert seen["killed"] > count / 2
    # It did come in the middle of writing, and both before and after the last step.
    assert seen["left something behind"] > count / 10
    assert min(seen["old"], seen["new"]) > count / 20


@pytest.mark.parametrize("count", [50, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_limit_of_file_size_leaves_the_old_file(play, count):
    assert play("size_limit", count)["refused"] >= count


@pytest.mark.usefixtures("unmeasured")  # that allocates, too
def test_every_allocation_may_fail(play):
    pytest.importorskip("_testcapi", reason="this Python was built without it")
    assert play("memory", 0)["failed"] > 100


def test_too_little_memory_is_said(play):
    seen = play("address_space", 16)
    assert seen["written"] > 0
    assert seen["MemoryError"] > 0


def test_eight_writers_of_one_path_and_a_reader(play):
    seen = play("writers", 20)
    assert seen["reads"] > 20
    assert seen["writers seen"] > 1


def test_of_eight_that_make_one_file_or_folder_one_wins(play):
    assert play("first_wins", 4)["races"] == 16


def test_of_eight_that_replace_one_folder_none_mixes_with_another(play):
    assert play("folders", 3)["rounds"] == 6


def test_a_folder_that_may_not_be_written_is_refused(play):
    assert play("read_only", 0)["refused"] == 2


def test_a_file_that_is_cut_off_while_in_use_ends_who_has_mapped_it_alone(play):
    """As `load` says: without the map nothing that is done to the file matters any more."""
    assert play("cut_off", 0) == {"mapped": -7, "read": 0}


@pytest.mark.parametrize("count", [20, pytest.param(250, marks=pytest.mark.slow)])
def test_killed_writers_of_a_store_leave_it_whole(play, count):
    seen = play("store_writers", count)
    assert seen["killed"] >= 2 * count
    assert seen["names"] > 0


@pytest.mark.parametrize("count", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_a_job_killed_at_any_moment_is_finished_by_the_next(play, count):
    seen = play("jobs_killed", count)
    assert seen["killed"] >= count
    assert seen["done before"] > 0


@pytest.mark.parametrize("count", [10, pytest.param(500, marks=pytest.mark.slow)])
def test_a_job_whose_pool_is_killed_loses_nothing_and_leaves_no_process(play, count):
    seen = play("pool_killed", count)
    assert min(seen["jobs"], seen["workers"]) > 0


def test_a_full_disk_loses_nothing_of_a_store_or_a_job(tmp_path):
    """In a file system of 2 MB, which only this test sees."""
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
