"""A store of many small adapters, compared with writing the same bytes as files.

``python -m tests.bench store`` fills a store in the folder that ``BENCH_FOLDER`` names (a temporary
one if not given) with ``BENCH_ADAPTERS`` adapters (100,000), and prints the times.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import vbfmt
from tests.bench.shapes import large_adapters
from tests.bench.table import Row
from tests.store.adapters import adapter
from vbfmt.store import Store
from vbfmt.store.catalog import FILE

BATCH = 1000
BANKS, BASES = 10, 1000


def plain_write(folder: Path, name: str, content: bytes) -> None:
    """Write a file durably: a temporary file, flushed and renamed, and its folder flushed."""
    path = folder / name[:2] / name
    temporary = f"{path}.new"
    with open(temporary, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(temporary, path)
    file = os.open(path.parent, os.O_RDONLY)
    os.fsync(file)
    os.close(file)


def shards(folder: Path) -> Path:
    for number in range(256):
        (folder / f"{number:02x}").mkdir(parents=True)
    return folder


def rows() -> list[Row]:
    """Measure add, get, list, verify, rebuild and collect."""
    count = int(os.environ.get("BENCH_ADAPTERS", "100000"))
    home = Path(tempfile.mkdtemp(dir=os.environ.get("BENCH_FOLDER")))
    try:
        return measured(home, count)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def measured(home: Path, count: int) -> list[Row]:
    store = Store(home / "store", create=True)
    objects, named = shards(home / "objects"), shards(home / "named")
    digests: list[str] = []
    ours, plain, first = [], [], 0
    for number in range(BANKS):
        store.add(adapter(number, bank=number, base="warm"))
    for first in range(0, count, BATCH):
        batch = [
            adapter(number, bank=number % BANKS, base=f"base-{number % BASES}")
            for number in range(first, first + BATCH)
        ]
        packed = [vbfmt.dumps(one, bank="external") for one in batch]
        names = [f"user-{number}" for number in range(first, first + BATCH)]
        start = time.perf_counter()
        digests += [store.add(one, name=name) for one, name in zip(batch, names, strict=True)]
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        for digest, name, content in zip(digests[-BATCH:], names, packed, strict=True):
            plain_write(objects, digest[7:], content)
            record = f'{{"digest": "{digest}", "name": "{name}"}}'.encode()
            plain_write(named, f"{hash(name) % 256:02x}-{name}"[:2] + name, record)
        plain.append(time.perf_counter() - start)
        if sys.stderr.isatty():
            print(f"\r{first + BATCH} of {count}", end="", file=sys.stderr)
    size, bare = bytes_in(home / "store"), bytes_in(objects) + bytes_in(named)
    catalog = sum(path.stat().st_size for path in (home / "store").glob(f"{FILE}*"))
    listing_first = seconds(lambda: store.entries(base_model="base-7"))
    rng = random.Random(0)
    get = [seconds(lambda: store.open(f"user-{rng.randrange(count)}")) for _ in range(1000)]
    resolve = [seconds(lambda: store.resolve(f"user-{rng.randrange(count)}")) for _ in range(1000)]
    listing = [seconds(lambda: store.entries(base_model="base-7")) for _ in range(21)]
    found = len(store.entries(base_model="base-7"))
    assert found == count // BASES
    growth = statistics.median(ours[-5:]) / statistics.median(ours[:5])
    plain_growth = statistics.median(plain[-5:]) / statistics.median(plain[:5])
    rebuild = seconds(store.rebuild)
    assert store.stats().adapters == count + BANKS
    for number in rng.sample(range(count), count // 100):
        store.untag(f"user-{number}")
    collect = seconds(lambda: collected(store, count // 100 + BANKS))
    assert store.stats().adapters == count - count // 100
    verify = seconds(lambda: sound(store))
    milli = 1000 / count
    return [
        Row(
            f"add {count:,} adapters by name, one at a time",
            f"{sum(ours):.0f} s, {sum(ours) * milli:.2f} ms each",
            f"the same bytes as files, flushed: {sum(plain):.0f} s, {sum(plain) * milli:.2f} ms",
            sum(ours) / sum(plain),
            2,
        ),
        Row(
            f"the last thousands of {count:,} beside the first",
            f"{1000 * statistics.median(ours[-5:]) / BATCH:.2f} ms an adapter",
            f"{1000 * statistics.median(ours[:5]) / BATCH:.2f} ms; files grow × {plain_growth:.2f}",
            growth,
            1.2,
        ),
        Row(
            "bytes in the store",
            f"{size / 1e6:.1f} MB, of which catalog {catalog / 1e6:.1f} MB",
            f"the same as files: {bare / 1e6:.1f} MB",
            size / bare,
            None,
        ),
        milliseconds("open an adapter by name, verified (median)", get, 1),
        milliseconds("resolve a name (median)", resolve, 1),
        large_row(home / "large"),
        milliseconds(f"list {found} of a base (median)", listing, 50),
        milliseconds("list them for the first time after all were added", [listing_first], None),
        milliseconds("rebuild the catalog", [rebuild], None),
        milliseconds(f"collect {count // 100 + BANKS:,}", [collect], None),
        milliseconds("verify all", [verify], None),
    ]


def large_row(folder: Path) -> Row:
    """Measure opening adapters of Llama-2-7B's shape whose bank is already in memory, each many
    times."""
    with Store(folder, create=True) as store:
        digests = [store.add(one) for one in large_adapters(20)]
        kept = [store.open(digest) for digest in digests[:1]]  # keeps the bank in memory
        opened = [seconds(lambda d=digest: store.open(d)) for digest in digests * 10]
        assert kept[0].bank is store.open(digests[-1]).bank
    return milliseconds(
        "open an adapter of Llama-2-7B's shape, verified, its bank known (median)", opened, 3
    )


def milliseconds(what: str, measured: list[float], bound: float | None) -> Row:
    median = 1000 * statistics.median(measured)
    return Row(what, f"{median:.2f} ms", "", median, bound)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def collected(store: Store, expected: int) -> None:
    assert len(store.gc(grace=0).removed) == expected


def sound(store: Store) -> None:
    assert all(report.ok for report in store.verify())


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
