"""The package as it is installed: wheel, plain and editable, used from any folder."""

from __future__ import annotations

import shutil
import subprocess
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

CHECK = "import vbfmt, vbfmt.converters.peft as p; print(vbfmt.__file__, p.__file__, sep=chr(10))"


def run(*command, cwd):
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module", params=["wheel", "plain", "editable"])
def installed(request, tmp_path_factory):
    """Return the Python of an environment with the package, the folder of its source, and a
    checkout."""
    backend = pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp(request.param)
    checkout = copied(folder / "checkout")  # building writes into it
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    # Dependencies and the build backend are those of this environment.
    (packages / "others.pth").write_text(str(Path(backend.__file__).parents[1]))
    pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check")
    alone = ("--no-deps", "--no-build-isolation")
    what = [checkout]
    if request.param == "wheel":
        run(*pip, "wheel", *alone, "--wheel-dir", folder, checkout, cwd=folder)
        what = list(folder.glob("*.whl"))
    if request.param == "editable":
        what = ["--editable", checkout]
    run(*pip, "install", *alone, "--ignore-installed", *what, cwd=folder)
    return python, checkout if request.param == "editable" else packages, checkout


def copied(checkout):
    checkout.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    for name in ("vbfmt", "converters"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, checkout / name, ignore=ignored)
    return checkout


def test_outside_a_checkout_the_installed_package_is_imported(installed, tmp_path):
    python, home, _ = installed
    assert all(path.startswith(str(home)) for path in run(python, "-c", CHECK, cwd=tmp_path))


def test_in_a_checkout_both_packages_come_from_the_same_place(installed):
    python, home, checkout = installed
    for cwd in (checkout, checkout / "vbfmt"):
        paths = run(python, "-c", CHECK, cwd=cwd)
        assert any(all(path.startswith(str(one)) for path in paths) for one in (home, checkout))


def test_the_command_runs_from_any_folder(installed, tmp_path):
    python, _, checkout = installed
    source = ROOT / "tests" / "data" / "minilm-vblora"
    for number, cwd in enumerate((tmp_path, checkout)):
        target = tmp_path / f"{number}.vblora"
        run(python.with_name("vbfmt"), "pack", source, "-o", target, cwd=cwd)
        assert run(python.with_name("vbfmt"), "verify", target, cwd=cwd)[0].endswith("ok")
