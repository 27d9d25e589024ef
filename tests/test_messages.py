"""Every message that the invalid files of the corpus provoke, word by word.

A message is a part of the command's face: who changes one sees it here as its user will. Write the
file anew with ``python -m tests.test_messages`` and read the difference.
"""

from __future__ import annotations

from pathlib import Path

from tests.conftest import ROOT
from vbfmt import errors, loads

INVALID = ROOT / "spec" / "corpus" / "invalid"
BANKS = ROOT / "spec" / "corpus" / "banks"
MESSAGES = Path(__file__).parent / "messages.txt"


def message(path: Path) -> str:
    try:
        loads(path.read_bytes(), banks=BANKS)
    except errors.VbfmtError as error:
        return f"{error.kind}: {error}".replace(str(BANKS), "…")
    return "accepted"


def messages() -> list[str]:
    return [f"{path.stem}: {message(path)}" for path in sorted(INVALID.glob("*.vblora"))]


def test_messages_are_worded_as_they_were():
    found, expected = messages(), MESSAGES.read_text(encoding="utf-8").splitlines()
    assert found == expected
    assert len(found) >= 150


if __name__ == "__main__":
    MESSAGES.write_text("\n".join(messages()) + "\n", encoding="utf-8")
