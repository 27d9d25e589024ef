"""The CI workflows run the Makefile's targets, so that everything can be run locally."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
_STEP = re.compile(r"^\s*- run: (.*)$", re.M)
_TARGET = re.compile(r"^([\w/-]+)(?: [\w/-]+)*:(?!=)", re.M)

pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="an sdist has no workflows")


def targets() -> set[str]:
    return set(_TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_step_runs_a_target_or_the_final_check(path):
    text = path.read_text(encoding="utf-8")
    steps = _STEP.findall(text)
    assert steps
    assert text.count("run:") == len(steps)  # no step of several lines
    for step in steps:
        command, *words = step.split()
        if command == "make":
            assert words
            assert set(words) <= targets()
        else:
            assert step == "bash .ci/run"


def test_the_final_check_begins_with_targets():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    made = [line.split()[1] for line in lines if line.startswith("make ")]
    assert made == ["check", "demo", "second-reader", "test"]
    assert set(made) <= targets() | {"test"}


def test_the_help_names_every_target_for_users():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    shown = set(re.findall(r'@echo "make ([\w-]+) ', text))
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split())
    assert phony - shown == {"help", "second-reader", "format", "types", "clean"}
    assert shown <= phony


def test_a_release_is_published_without_a_password():
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    assert "make dist sbom" in text
    assert "permissions: {id-token: write}" in text
    assert "pypa/gh-action-pypi-publish" in text
    assert "secrets." not in text
