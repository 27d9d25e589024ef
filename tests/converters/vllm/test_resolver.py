"""The resolver that vLLM asks for adapters by name."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.converters.gguf.random_adapter import random_adapter
from vbfmt import save
from vbfmt.converters import vllm as plugin
from vbfmt.converters.vllm.resolver import NAME, Folder, Resolver
from vbfmt.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    save(random_adapter(layers=1, hidden=32, feed=48, kv=16, b=8), tmp_path / "alice.vblora")
    return tmp_path


def resolved(folder, name):
    return asyncio.run(Resolver(Folder(folder)).resolve_lora("base", name))


def test_an_adapter_is_requested_by_name_and_digest(vllm, folder):
    request = resolved(folder, "alice")
    assert request.lora_name == "alice"
    assert request.lora_path == plugin.lora_path(folder / "alice.vblora")


def test_an_unknown_name_is_not_resolved(vllm, folder):
    assert resolved(folder, "bob") is None
    assert resolved(folder, "../alice") is None


def test_a_damaged_adapter_goes_to_the_worker_without_a_digest_and_is_logged(vllm, folder, caplog):
    path = folder / "alice.vblora"
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.ERROR):
        assert resolved(folder, "alice").lora_path == str(path)
    assert "adapter alice: the file's length is wrong" in caplog.text
    assert str(path) in caplog.text


def test_register_does_nothing_without_a_folder(vllm, monkeypatch):
    monkeypatch.delenv(plugin.ADAPTERS, raising=False)
    before = vllm.helper.from_local_dir.__func__
    plugin.register()
    assert not vllm.registry.resolvers
    assert vllm.helper.from_local_dir.__func__ is before


def test_register_may_be_called_twice(vllm, folder, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv(plugin.ADAPTERS, str(folder))
    plugin.register()
    resolver, method = vllm.registry.resolvers[NAME], vllm.helper.from_local_dir.__func__
    plugin.register()
    assert vllm.registry.resolvers == {NAME: resolver}
    assert vllm.helper.from_local_dir.__func__ is method


def test_register_refuses_a_missing_folder(vllm, folder, monkeypatch):
    monkeypatch.setenv(plugin.ADAPTERS, str(folder / "nowhere"))
    with pytest.raises(ConfigError, match="no folder of adapters"):
        plugin.register()


@pytest.mark.parametrize(("value", "warned"), [(None, True), ("0", True), ("1", False)])
def test_register_warns_of_a_server_that_does_not_use_the_resolver(
    vllm, folder, monkeypatch, caplog, value, warned
):
    pytest.importorskip("torch")
    monkeypatch.setenv(plugin.ADAPTERS, str(folder))
    monkeypatch.delenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", raising=False)
    if value is not None:
        monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", value)
    plugin.register()
    assert ("VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in caplog.text) == warned
