"""Flip every bit of packed files and try every truncation: ``python -m tests.flips [PATH …]``.

PATH is a packed file, or a checkpoint folder that is packed first. Without one: the trained
checkpoint in tests/data, the golden files and the valid files of the corpus.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.conftest import ROOT
from vbfmt import dumps, errors, loads
from vbfmt._format.packed_file import PackedFile
from vbfmt.converters import peft


def missed_flips(data: bytes, positions: Iterable[int], bits: Iterable[int] = range(8)) -> Iterator:
    """Yield (position, bit) of the flips that are not detected.

    Flips before the sections go through the whole of `loads`. Later ones cannot change the front,
    so it is parsed once, and only the following steps of `loads` are repeated for every flip.
    """
    buffer = bytearray(data)
    assert not _is_refused(buffer)
    packed = PackedFile.parse(buffer)
    bits = tuple(bits)
    for position in positions:
        whole = position < packed.preamble.header_end
        for bit in bits:
            buffer[position] ^= 1 << bit
            if not (_is_refused(buffer) if whole else any(packed.damage())):
                yield position, bit
            buffer[position] ^= 1 << bit
    assert buffer == data


def missed_truncations(data: bytes) -> Iterator[int]:
    """Return the lengths to which the file can be truncated without detection."""
    view = memoryview(data)
    return (length for length in range(len(data)) if not _is_refused(view[:length]))


BANKS = ROOT / "spec" / "corpus" / "banks"


def _is_refused(data: bytearray | memoryview) -> bool:
    try:
        loads(data, banks=BANKS)
    except errors.VbfmtError:
        return True
    return False


def _packed(path: Path) -> bytes:
    return dumps(peft.read(path)) if path.is_dir() else path.read_bytes()


def main() -> int:
    """Run the command and return the exit status: 1 if a change was not detected."""
    paths = [Path(path) for path in sys.argv[1:]] or [
        ROOT / "tests" / "data" / "minilm-vblora",
        *sorted((ROOT / "spec" / "golden").glob("*.vblora")),
        *sorted((ROOT / "spec" / "corpus" / "valid").glob("*.vblora")),
    ]
    flips = cuts = missed = 0
    start = time.monotonic()
    for path in paths:
        data = _packed(path)
        for first in range(0, len(data), 4096):
            chunk = range(first, min(first + 4096, len(data)))
            for position, bit in missed_flips(data, chunk):
                print(f"{path}: bit {bit} of byte {position} unnoticed")
                missed += 1
            flips += 8 * len(chunk)
            if sys.stderr.isatty():
                print(f"\r{path.name}: byte {chunk.stop} of {len(data)}  ", end="", file=sys.stderr)
        for length in missed_truncations(data):
            print(f"{path}: cut to {length} bytes unnoticed")
            missed += 1
        cuts += len(data)
    print(
        f"{len(paths)} files: {flips} flips and {cuts} truncations, {missed} unnoticed, "
        f"{time.monotonic() - start:.0f} s"
    )
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main())
