"""The report on mutants: its counts, when it fails, and which mutants are explained."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("tomllib")  # from Python 3.11 on

from tests.mutation import equivalent
from tests.mutation.__main__ import main
from tests.mutation.equivalent import reason

KILLED, SURVIVED, INTERRUPTED, NONE_COLLECTED, NO_TESTS, SKIPPED = 1, 0, 2, 5, 33, 34

SOURCE = """
def x_f__mutmut_orig(a):
    return a + 1
def x_f__mutmut_1(a):
    return a - 1
def x_f__mutmut_2(a):
    return a + 2
"""


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    """Return a function from mutants' exit codes to the report's exit code and text."""
    monkeypatch.setattr(equivalent, "EQUIVALENT", ())

    def run(*codes, modules=("vbfmt/_format/rules.py",)):
        text = f"[tool.mutmut]\nonly_mutate = {json.dumps(list(modules))}\n"
        (tmp_path / "pyproject.toml").write_text(text)
        folder = tmp_path / "mutants" / "vbfmt" / "_format"
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"vbfmt._format.rules.x_f__mutmut_{i}" for i in range(1, len(codes) + 1)]
        found = {"exit_code_by_key": dict(zip(names, codes, strict=True))}
        (folder / "rules.py.meta").write_text(json.dumps(found))
        (folder / "rules.py").write_text(SOURCE)
        monkeypatch.setattr("sys.argv", ["", str(tmp_path)])
        return main(), capsys.readouterr().out

    return run


@pytest.mark.parametrize("code", [KILLED, 3, 36, -24, 24, 152, 255, -11, -9])
def test_failing_tests_timeouts_and_crashes_count_as_killed(report, code):
    status, text = report(code, code)
    assert status == 0
    assert "100.0%" in text


@pytest.mark.parametrize("code", [INTERRUPTED, NONE_COLLECTED, NO_TESTS, SKIPPED, None, 35])
def test_a_mutant_without_tests_fails_the_report(report, code):
    status, _ = report(KILLED, code)
    assert status == 1


def test_survivors_are_listed_and_counted(report):
    status, text = report(KILLED, SURVIVED)
    assert status == 1
    assert "50.0%" in text
    assert "- return a + 1\n+ return a + 2" in text


def test_an_explanation_that_no_survivor_needs_fails_the_report(report, monkeypatch):
    stale = equivalent.Equivalent("rules.x_f__", "a - 1", ("a - 9",), "nothing")
    used = equivalent.Equivalent("rules.x_f__", "a + 1", ("a + 2",), "for the test")
    monkeypatch.setattr(equivalent, "EQUIVALENT", (used,))
    assert report(KILLED, SURVIVED)[0] == 0
    monkeypatch.setattr(equivalent, "EQUIVALENT", (used, stale))
    status, text = report(KILLED, SURVIVED)
    assert status == 1
    assert "explains no survivor: rules.x_f__ 'a - 1'" in text


def test_an_explained_mutant_that_exceeds_the_time_limit_does_not_count_as_killed(
    report, monkeypatch
):
    used = equivalent.Equivalent("rules.x_f__", "a + 1", ("a + 2",), "for the test")
    monkeypatch.setattr(equivalent, "EQUIVALENT", (used,))
    status, text = report(KILLED, 36)
    assert status == 0
    assert text.splitlines()[1].split() == ["rules", "2", "1", "1", "0", "0", "100.0%"]


def test_a_module_without_results_fails_the_report(report):
    assert report(KILLED, modules=["vbfmt/_format/rules.py", "vbfmt/_format/header.py"])[0] == 1
    assert report()[0] == 1


def test_an_empty_folder_is_not_a_success(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["", str(tmp_path)])
    with pytest.raises(FileNotFoundError):
        main()


PACKB = "packed: bytes = msgpack.packb(value, use_bin_type=True)"
NUMBER = "number = int.from_bytes(data[start + 1:start + 1 + length], 'big')"


@pytest.mark.parametrize(
    ("function", "line", "was", "now"),
    [
        ("canonical.x_pack", PACKB, "value", "None"),
        ("canonical.x_pack", PACKB, "=True", "=False"),
        ("canonical.x__number", NUMBER, "start + 1:", "start + 2:"),
        ("canonical.x__number", NUMBER, "'big'", "'BIG'"),
        ("admixture.x__sort_rows", "a = np.take_along_axis(b, c, axis=1)", "axis=1", "axis=None"),
    ],
)
def test_an_explanation_covers_only_its_change_not_the_whole_line(function, line, was, now):
    assert reason(f"vbfmt.{function}__mutmut_1", f"- {line}\n+ {line.replace(was, now)}") is None


def test_two_changes_are_never_explained():
    changed = PACKB.replace(", use_bin_type=True", "").replace("value", "None")
    assert reason("vbfmt._format.canonical.x_pack__mutmut_1", f"- {PACKB}\n+ {changed}") is None


def test_reviewed_equivalent_mutants_are_explained():
    change = f"- {PACKB}\n+ {PACKB.replace(', use_bin_type=True', '')}"
    assert reason("vbfmt._format.canonical.x_pack__mutmut_1", change)
