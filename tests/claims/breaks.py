"""Changes of the code that each make a claim of SECURITY.md false, and the tests that must then
fail.

They are in the ``.txt`` files of this folder: the test, the file to change, the lines to remove
(``-``) and the lines to put in their place (``+``).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent


class Break(NamedTuple):
    """A test that SECURITY.md names, and a change that makes its claim false.

    Attributes:
        test: path and name of the test in ``tests``; ``[…]`` selects one set of parameters if
        others are slow.
        file: the file that is changed.
        old, new: text of the file before and after the change.
    """

    test: str
    file: str
    old: str
    new: str

    @property
    def named(self) -> str:
        """Return the name of the test as SECURITY.md gives it."""
        return self.test.partition("[")[0]


def breaks() -> list[Break]:
    """Return all changes."""
    texts = [path.read_text() for path in sorted(HERE.glob("*.txt"))]
    return [_break(block) for text in texts for block in text.split("\n\n")]


def _break(block: str) -> Break:
    test, file, *lines = block.strip("\n").split("\n")
    old, new = (
        "\n".join(line[2:] for line in lines if line.startswith(sign)) for sign in ("- ", "+ ")
    )
    return Break(test, file, old, new)
