"""Changes of the code that each make a claim of SECURITY.md false, and the tests that must notice.

They stand in the ``.txt`` files beside: the test, the file, lines that begin with ``-`` as they are
in it, and with ``+`` as they are then.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent


class Break(NamedTuple):
    """A test that SECURITY.md names, and a change that makes its claim false.

    Attributes:
        test: in ``tests``; with ``[…]`` one set of its parameters, where others take long.
        file: that is changed.
        old, new: text of it.
    """

    test: str
    file: str
    old: str
    new: str

    @property
    def named(self) -> str:
        """The test as SECURITY.md names it."""
        return self.test.partition("[")[0]


def breaks() -> list[Break]:
    """Return all of them."""
    texts = [path.read_text() for path in sorted(HERE.glob("*.txt"))]
    return [_break(block) for text in texts for block in text.split("\n\n")]


def _break(block: str) -> Break:
    test, file, *lines = block.strip("\n").split("\n")
    old, new = (
        "\n".join(line[2:] for line in lines if line.startswith(sign)) for sign in ("- ", "+ ")
    )
    return Break(test, file, old, new)
