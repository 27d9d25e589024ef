"""For each claim in SECURITY.md there is a change of the code that makes it false, which
``python -m tests.claims`` applies.
"""

from __future__ import annotations

import pytest

from tests.claims.breaks import breaks
from tests.test_limits import NAMED, ROOT

BREAKS = breaks()


def test_exactly_the_tests_in_security_md_have_a_break():
    named = {f"{file.removeprefix('tests/')}::{name}" for file, name in NAMED}
    assert {each.named for each in BREAKS} == named


@pytest.mark.parametrize("each", BREAKS, ids=lambda each: each.test)
def test_lines_to_break_are_in_the_code(each):
    assert each.old
    assert each.old != each.new
    assert each.old in (ROOT / each.file).read_text()
