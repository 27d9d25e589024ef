"""The exact message for every invalid file of the corpus.

Messages are a part of the user interface. This test fails if one changes, so that no change goes
unnoticed. To update the file, run ``python -m tests.test_messages`` and read the difference.
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


def test_messages_are_unchanged():
    found, expected = messages(), MESSAGES.read_text(encoding="utf-8").splitlines()
    assert found == expected
    assert len(found) >= 150


if __name__ == "__main__":
    MESSAGES.write_text("\n".join(messages()) + "\n", encoding="utf-8")
