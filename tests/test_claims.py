"""Each claim of SECURITY.md has a change of the code that makes it false, which
``python -m tests.claims`` tries.
"""

from __future__ import annotations

import pytest

from tests.claims.breaks import breaks
from tests.test_limits import NAMED, ROOT

BREAKS = breaks()


def test_every_test_that_security_names_has_a_break_and_no_other():
    named = {f"{file.removeprefix('tests/')}::{name}" for file, name in NAMED}
    assert {each.named for each in BREAKS} == named


@pytest.mark.parametrize("each", BREAKS, ids=lambda each: each.test)
def test_what_is_broken_is_in_the_code(each):
    assert each.old
    assert each.old != each.new
    assert each.old in (ROOT / each.file).read_text()
