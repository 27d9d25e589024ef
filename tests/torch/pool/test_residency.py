"""Adding and removing adapters: by name, by last use, during batches, and from many threads."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch

import vbfmt
from tests.torch.models import net
from tests.torch.pool.adapters import adapter, merged, random_adapter
from vbfmt import Module
from vbfmt.errors import ConfigError, DigestError, ModelError
from vbfmt.torch import AdapterPool

LAYERS = ["encoder.0", "encoder.1", "out"]
X = torch.randn(3, 16, generator=torch.Generator().manual_seed(7))


def small(seed, **sizes):
    return adapter(net, LAYERS, seed, **sizes)


def run(pool, names):
    with torch.no_grad(), pool.forward(names):
        return pool._model(X[: len(names)])


def alone(found):
    with torch.no_grad():
        return merged(net, found)(X)


def same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_names_are_added_removed_and_replaced():
    pool = AdapterPool(net())
    first, second = small(1), small(2)
    pool.put("x", first)
    pool.put("y", second)
    same(run(pool, ["x", "y"]), torch.stack([alone(first)[0], alone(second)[1]]))
    pool.put("x", second)
    same(run(pool, ["x"]), alone(second)[:1])
    assert "x" in pool
    assert len(pool) == 2
    pool.remove("x")
    with pytest.raises(ModelError, match="no such adapter in the pool: found x"):
        run(pool, ["x"])
    with pytest.raises(ModelError, match="no such adapter"):
        pool.remove("x")
    pool.remove("y")
    assert pool.used_bytes == 0


def test_from_files(tmp_path):
    found = small(1)
    digest = vbfmt.save(found, tmp_path / "x.vblora")
    pool = AdapterPool(net())
    pool.put("x", tmp_path / "x.vblora", digest=digest)
    same(run(pool, ["x"]), alone(found)[:1])
    with pytest.raises(DigestError, match=r"x\.vblora"):
        pool.put("y", tmp_path / "x.vblora", digest="sha256:" + "0" * 64)
    assert pool.names == ["x"]


def test_banks_of_equal_content_are_stored_once():
    """Adapters may share an array, or have arrays with equal values."""
    modules = [Module("encoder.0", 16, 32, 2)]
    bank = np.random.default_rng(0).uniform(-1, 1, (256, 8)).astype("<f4")
    pool = AdapterPool(net())
    sizes = []
    for place in range(6):
        pool.put(str(place), random_adapter(modules, bank.copy() if place % 2 else bank, place))
        sizes.append(pool.used_bytes)
    assert sizes[0] == bank.nbytes + 1024
    assert np.diff(sizes).tolist() == [1024] * 5
    pool.put("other", random_adapter(modules, bank + 1, 9))
    assert pool.used_bytes - sizes[-1] == bank.nbytes + 1024
    for name in pool.names:
        pool.remove(name)
    assert pool.used_bytes == 0


def test_a_bank_that_is_changed_in_place_is_a_different_bank():
    modules = [Module("encoder.0", 16, 32, 2)]
    bank = np.random.default_rng(0).uniform(-1, 1, (256, 8)).astype("<f4")
    pool = AdapterPool(net())
    pool.put("x", random_adapter(modules, bank, 1))
    bank += 1
    found = random_adapter(modules, bank, 1)
    pool.put("y", found)
    assert torch.equal(run(pool, ["y"]), run(AdapterPool_with(found), ["y"]))


def AdapterPool_with(found):  # noqa: N802
    pool = AdapterPool(net())
    pool.put("y", found)
    return pool


def limit_for(count, found):
    """Return a limit for this number of adapters with one bank."""
    pages = -(-(found.weights.nbytes + found.indices.nbytes) // 1024)
    return count * pages * 1024 + found.bank.nbytes


def with_one_bank(count):
    bank = np.random.default_rng(0).uniform(-1, 1, (64, 8)).astype("<f4")
    modules = [Module("encoder.0", 16, 32, 3), Module("out", 32, 8, 2)]
    return [random_adapter(modules, bank, seed) for seed in range(count)]


def test_the_least_recently_used_adapter_is_removed():
    found = with_one_bank(5)
    pool = AdapterPool(net(), limit=limit_for(3, found[0]))
    for place in range(3):
        pool.put(str(place), found[place])
    run(pool, ["0"])
    pool.put("3", found[3])
    assert pool.names == ["2", "0", "3"]
    assert pool.evicted == 1
    pool.put("2", found[4])  # a replacement evicts no other adapter
    assert pool.names == ["0", "3", "2"]
    assert pool.used_bytes <= limit_for(3, found[0])
    pool.put("1", found[1])
    assert pool.names == ["3", "2", "1"]
    for name, each in (("1", found[1]), ("2", found[4]), ("3", found[3])):
        same(run(pool, [name]), alone(each)[:1])


def test_an_adapter_in_a_running_batch_is_not_removed():
    found = with_one_bank(5)
    pool = AdapterPool(net(), limit=limit_for(2, found[0]))
    pool.put("0", found[0])
    pool.put("1", found[1])
    with torch.no_grad(), pool.forward(["0", None]):
        for place in (2, 3, 4):
            pool.put(str(place), found[place])
        assert pool.names == ["0", "4"]
        pool.put("0", found[1])  # the running batch keeps the old one
        same(pool._model(X[:2])[0], alone(found[0])[0])
        with pytest.raises(ModelError, match="does not fit"), pool.forward(["0"]):
            pool.put("9", found[3])
        same(pool._model(X[:2])[0], alone(found[0])[0])
        assert pool.names == ["0"]
    same(run(pool, ["0"]), alone(found[1])[:1])
    pool.put("9", found[3])
    assert pool.names == ["0", "9"]


def test_an_adapter_larger_than_the_limit_changes_nothing():
    found = with_one_bank(2)
    pool = AdapterPool(net(), limit=limit_for(1, found[0]))
    pool.put("x", found[0])
    with pytest.raises(ModelError, match="does not fit into the pool: found .* bytes"):
        pool.put("y", small(1, r=20))
    assert pool.names == ["x"]
    same(run(pool, ["x"]), alone(found[0])[:1])


def test_missing_adapters_are_loaded_from_a_source(tmp_path):
    found = with_one_bank(6)
    asked = []

    def source(name):
        asked.append(name)
        return found[int(name)]

    pool = AdapterPool(net(), limit=limit_for(3, found[0]), source=source)
    for names in (["0", "1", None], ["2", "0", "0"], ["5", "4", "3"], ["0", "5", "1"]):
        mixed = run(pool, names)
        for place, name in enumerate(names):
            if name is not None:
                same(mixed[place], alone(found[int(name)])[place])
    assert asked == ["0", "1", "2", "5", "4", "3", "0", "1"]
    with pytest.raises(ModelError, match="does not fit"), pool.forward(["0", "1", "2", "3"]):
        pass
    run(pool, ["4"])  # adapters of the failed batch are unpinned


def test_eight_threads():
    """Each thread adds, runs and removes adapters. Memory is too small for all of them."""
    found = with_one_bank(40) + [small(seed, r=1 + seed % 3) for seed in range(8)]
    wanted = [alone(each) for each in found]
    pool = AdapterPool(net(), limit=limit_for(30, found[0]), source=lambda name: found[int(name)])
    faults = []

    def work(seed):
        choice = random.Random(seed)
        try:
            for _ in range(60):
                numbers = [choice.randrange(len(found)) for _ in range(3)]
                mixed = run(pool, [str(number) for number in numbers])
                for place, number in enumerate(numbers):
                    same(mixed[place], wanted[number][place])
                if choice.random() < 0.3:
                    number = choice.randrange(len(found))
                    pool.put(str(number), found[number])
        except BaseException as error:  # noqa: BLE001
            faults.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults[0]
    assert pool.evicted > 0
    assert pool.used_bytes <= limit_for(30, found[0])
    for name in pool.names:
        pool.remove(name)
    assert pool.used_bytes == 0


def test_rows_of_llama_2_7b_take_little_more_than_their_bytes():
    """With h = 256, b = 256, r = 4 and k = 2, these are 39,040 rows of 6 bytes."""
    shapes = {"q": (4096, 4096), "k": (4096, 4096), "v": (4096, 4096), "o": (4096, 4096),
              "gate": (4096, 11008), "up": (4096, 11008), "down": (11008, 4096)}  # fmt: skip
    modules = [
        Module(f"layers.{at}.{name}", i, o, 4)
        for at in range(32)
        for name, (i, o) in shapes.items()
    ]
    with torch.device("meta"):
        model = torch.nn.Module()
        model.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict({name: torch.nn.Linear(i, o) for name, (i, o) in shapes.items()})
            for _ in range(32)
        )
    pool = AdapterPool(model)
    pool._device = pool._residents.pages._device = torch.device("meta")
    bank = np.random.default_rng(0).uniform(-1, 1, (256, 256)).astype("<f4")
    found = random_adapter(modules, bank, 0)
    rows = found.weights.nbytes + found.indices.nbytes
    assert rows == 39040 * 6
    for place in range(200):
        pool.put(str(place), found)
    assert (pool.used_bytes - bank.nbytes) / 200 <= 1.01 * rows
    assert (pool.reserved_bytes - bank.nbytes) / 200 <= 1.05 * rows


@pytest.mark.parametrize("limit", [0, -1, "10 GB", 1.5])
def test_an_invalid_limit_is_refused(limit):
    with pytest.raises(ConfigError, match="limit: found"):
        AdapterPool(net(), limit=limit)


def test_the_cache_of_prepared_batches_is_bounded(monkeypatch):
    """Prepared tensors are kept only for a few sizes and layouts."""
    monkeypatch.setattr("vbfmt.torch.pool.batch._KEPT_FRAMES", 2)
    pool = AdapterPool(net())
    found = {str(rank): small(rank, r=rank) for rank in range(1, 5)}
    for name, each in found.items():
        pool.put(name, each)
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(8))
    expected = {}
    with torch.no_grad():
        for name, each in found.items():
            expected[name] = merged(net, each)(x)
    for _ in range(2):
        for name in found:
            for size in range(1, 8):
                with torch.no_grad(), pool.forward([name] * size):
                    same(pool.model(x[:size]), expected[name][:size])
