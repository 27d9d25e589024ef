"""Each rule about names, booleans and features is covered by a file of the corpus: if only that
rule is disabled, one of the invalid files is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from spec.corpus import make
from vbfmt import errors, loads
from vbfmt._format import header, rules

FILES = {path.stem: path.read_bytes() for path in Path(make.__file__).parent.glob("invalid/*")}

NAMES = ("module", "other tensor", "metadata", "optional_features")
FAULTS = ("is empty", "is longer", "has control", "appears twice", "is not sorted")


def read_all() -> set[str]:
    """Return the names of the files that are not refused."""
    read = set()
    for name, data in FILES.items():
        try:
            loads(data, banks=Path(make.__file__).parent / "banks")
            read.add(name)
        except errors.VbfmtError:
            pass
    return read


def test_with_all_rules_every_file_is_refused():
    assert not read_all()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", NAMES)
def test_names(kind, fault, monkeypatch):
    whole = rules.broken_names

    def without(names, what):
        for found in whole(names, what):
            if what != kind or fault not in found.what:
                yield found

    monkeypatch.setattr(rules, "broken_names", without)
    monkeypatch.setattr(header, "broken_names", without)
    # A repeated key is also refused by the rules for msgpack.
    assert bool(read_all()) is not ((kind, fault) == ("metadata", "appears twice"))


NUMBERS = ("h", "b", "k", "in-features", "out-features", "rank", "tensor-shape", "offset", "length")


@pytest.mark.parametrize("number", NUMBERS)
def test_booleans_are_not_numbers(number, monkeypatch):
    whole = header._typed

    def loose(value, kind, what):
        return int(value) if kind is int and isinstance(value, bool) else whole(value, kind, what)

    monkeypatch.setattr(header, "_typed", loose)
    assert f"{number}-boolean" in read_all()


@pytest.mark.parametrize("what", ["in", "out"])
def test_features_that_are_not_a_multiple_of_b(what, monkeypatch):
    whole = rules.broken_modules

    def without(modules, b):
        return (fault for fault in whole(modules, b) if not fault.what.startswith(f"{what}_"))

    monkeypatch.setattr(header, "broken_modules", without)
    monkeypatch.setattr(rules, "broken_modules", without)
    assert read_all() == {f"{what}-features-0", f"{what}-features-3"}


def test_features_of_which_only_the_sum_is_a_multiple_of_b(monkeypatch):
    def by_the_sum(modules, b):
        return (
            errors.ContentError("no whole rows")
            for module in modules
            if module.rank * (module.in_features + module.out_features) % b
        )

    monkeypatch.setattr(header, "broken_modules", by_the_sum)
    monkeypatch.setattr(rules, "broken_modules", by_the_sum)
    assert "in-and-out-features-3" in read_all()
