"""Regular expressions from configs."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("regex")

from vbfmt import errors
from vbfmt._patterns import LONGEST_PATTERN, matcher
from vbfmt._similar import nearest


def test_the_whole_name_is_matched():
    match = matcher(r"(?:.*\.)?layers\.(\d+)\..*")
    assert match("model.layers.12.q").group(1) == "12"
    assert match("layers.12") is None


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "a" * (LONGEST_PATTERN + 1)])
def test_an_invalid_pattern_is_one_error(pattern):
    with pytest.raises(errors.ConfigError, match="a regular expression"):
        matcher(pattern)


@pytest.mark.timeout(60)
def test_a_pattern_that_takes_too_long_is_one_error():
    """Python's own engine would take years for this one."""
    with pytest.raises(errors.ConfigError, match="takes too long"):
        matcher(r"(\w|\w\w|\w\.|\.)+[A-Z]")("model.layers.0.self_attn.q_proj" * 3)


def test_a_pattern_that_is_slow_for_every_name_is_one_error(monkeypatch):
    """It takes slightly less than the limit for one name, but there are thousands of names."""
    monkeypatch.setattr("vbfmt._patterns._SLOW", 0.0)
    monkeypatch.setattr("vbfmt._patterns.TIME_OF_ALL", 1e-3)
    match = matcher(r"(?:a|b|ab)*c|slow-for-all")
    with pytest.raises(errors.ConfigError, match=r"takes too long.*0\.001 s for all names"):
        for number in range(100_000):
            match(f"ab{number}")


def test_hints_for_hostile_names_take_little_time():
    """Earlier, ``difflib`` took up to 28 minutes for this."""
    begin = time.process_time()
    nearest("ba" * 512, ["ab" * 512 + str(number) for number in range(20_000)])
    assert time.process_time() - begin < 2


def test_a_hint_is_the_most_similar_name():
    names = [f"model.layers.{n}.self_attn.{leaf}" for n in range(40) for leaf in ("q_proj", "k")]
    assert nearest("model.layers.3.self_attn.q_porj", names)[0] == "model.layers.3.self_attn.q_proj"
    assert nearest("nothing.like.it.at.all", ["q"]) == []
