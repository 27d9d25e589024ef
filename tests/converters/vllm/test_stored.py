"""Adapters of a store, by name."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.converters.gguf.random_adapter import random_adapter
from vbfmt.converters import vllm as plugin
from vbfmt.converters.vllm.pinned import Pinned
from vbfmt.converters.vllm.resolver import Resolver, Stored
from vbfmt.errors import StoreError, VbfmtError
from vbfmt.store import Store

SIZES = {"layers": 1, "hidden": 32, "feed": 48, "kv": 16, "b": 8}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", create=True)


@pytest.fixture
def served(store, tmp_path):
    return Stored(tmp_path / "store")


@pytest.mark.parametrize("name", ["alice", "team/alice"])
def test_a_name_is_found_with_the_digest_that_it_points_to(store, served, name):
    adapter = random_adapter(**SIZES)
    digest = store.add(adapter, name=name)
    pinned = Pinned.parse(served.find(name))
    assert pinned.digest == digest
    assert pinned.load(banks=served.banks) == adapter


def test_a_moved_name_has_a_different_path(store, served):
    store.add(random_adapter(**SIZES), name="alice")
    before = served.find("alice")
    store.add(random_adapter(**SIZES, seed=1), name="alice", replaces=store.resolve("alice"))
    assert served.find("alice") != before
    store.untag("alice")
    assert served.find("alice") is None
    assert Pinned.parse(before).load(banks=served.banks) == random_adapter(**SIZES)


@pytest.mark.parametrize(
    "name", ["bob", "ALICE", "", "..", "../x", "/etc/passwd", "a\\b", "a\0b", "\ud800", "x" * 10**5]
)
def test_other_names_find_nothing(store, served, name):
    store.add(random_adapter(**SIZES), name="alice")
    assert served.find(name) is None


def test_a_digest_is_not_a_name(store, served):
    """An adapter without a name is no longer served."""
    assert served.find(store.add(random_adapter(**SIZES))) is None


def test_a_damaged_record_of_a_name_is_not_found_and_logged(vllm, store, served, tmp_path, caplog):
    store.add(random_adapter(**SIZES), name="alice")
    (record,) = (tmp_path / "store" / "names").glob("*/alice")
    record.write_text("{}")
    with pytest.raises(StoreError, match="a name's record is damaged"):
        served.find("alice")
    with caplog.at_level(logging.ERROR):
        assert asyncio.run(Resolver(served).resolve_lora("base", "alice")) is None
    assert "adapter alice: a name's record is damaged" in caplog.text


def test_a_damaged_adapter_is_refused_when_it_is_read(store, served):
    store.add(random_adapter(**SIZES), name="alice")
    pinned = Pinned.parse(served.find("alice"))
    with open(pinned.file, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(VbfmtError, match=pinned.file):
        pinned.load(banks=served.banks)


def test_register_takes_a_store(vllm, store, tmp_path, monkeypatch):
    from tests.converters.vllm.fakes import LoRARequest, Manager

    pytest.importorskip("torch")
    sizes = {**SIZES, "layers": 2}
    digest = store.add(random_adapter(**sizes), name="team/alice")
    monkeypatch.setenv(plugin.ADAPTERS, str(tmp_path / "store"))
    plugin.register()
    path = vllm.registry.resolvers["vbfmt"]._adapters.find("team/alice")
    assert path.endswith(digest)
    manager = vllm.modules["lora.worker_manager"].WorkerLoRAManager(Manager.of_llama())
    loaded = manager._load_adapter(LoRARequest("team/alice", 1, path))
    assert set(loaded.loras) == {module.name for module in random_adapter(**sizes)}
