"""The second reader, in JavaScript from the Kaitai description, agrees with this library."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from spec.golden.make import worked_example
from tests.fuzz import packed
from vbfmt import dumps, errors, loads

SPEC = Path(__file__).parents[2] / "spec"
HOME = SPEC / "javascript"
CORPUS = SPEC / "corpus"
VERDICTS = json.loads((CORPUS / "verdicts.json").read_text())


@pytest.fixture(scope="module")
def reader():
    """Build the second reader from the current description, and return a function from a folder to
    its verdicts."""
    if not shutil.which("node"):
        pytest.skip("the second reader needs Node.js, which is not here")
    if not (HOME / "node_modules").is_dir():
        pytest.skip("the second reader's packages are not installed: make second-reader")

    def run(*command):
        return subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=300)

    built = run("node", "build.js")
    assert built.returncode == 0, built.stderr

    def verdicts(folder):
        answer = run("node", "verdicts.js", str(folder), str(CORPUS / "banks"))
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    return verdicts


def test_valid_files_have_the_expected_content(reader):
    found = reader(CORPUS / "valid")
    assert found == {name: {"content": content} for name, content in VERDICTS["valid"].items()}


def test_invalid_files_have_the_expected_verdict(reader):
    found = reader(CORPUS / "invalid")
    assert found == {
        name: {"kind": verdict["kind"], "part": verdict["part"]}
        for name, verdict in VERDICTS["invalid"].items()
    }


def test_golden_files_are_read(reader):
    found = reader(SPEC / "golden")
    assert len(found) == 3
    example = found["worked-example"]["content"]
    assert example["digest"] in (SPEC / "vblora-1.0.md").read_text()
    assert reader(SPEC / "golden" / "thin") == {"worked-example": {"content": example}}


def test_a_string_of_megabytes_in_a_config_is_read(reader, tmp_path):
    """Earlier, a regular expression on the whole string exceeded the engine's stack."""
    config = json.dumps({"x": "x" * 14_000_000})
    (tmp_path / "long.vblora").write_bytes(
        dumps(dataclasses.replace(worked_example(), config=config))
    )
    assert "content" in reader(tmp_path)["long"]


def test_both_readers_refuse_the_same_random_damage(reader, tmp_path):
    """For structure-aware mutations of corpus files with corrected checksums, both readers accept,
    or both refuse for the same kind of fault."""
    rng = random.Random(5)
    pool = packed.seeds()
    expected = {}
    for number in range(1500):
        data = packed.damaged(rng.choice(pool), rng)
        (tmp_path / f"{number}.vblora").write_bytes(data)
        try:
            loads(data, banks=CORPUS / "banks")
            expected[str(number)] = "accepted"
        except errors.VbfmtError as error:
            expected[str(number)] = error.kind
    found = {name: verdict.get("kind", "accepted") for name, verdict in reader(tmp_path).items()}
    differing = {n: (expected[n], found[n]) for n in expected if expected[n] != found[n]}
    assert not differing
    assert len(set(expected.values())) >= 5  # accepted, header, content, layout, …


def test_the_lock_file_names_no_registry():
    lock = (SPEC / "javascript" / "package-lock.json").read_text()
    assert "http" not in lock
    assert lock.count('"integrity"') == lock.count('"node_modules/') >= 3
