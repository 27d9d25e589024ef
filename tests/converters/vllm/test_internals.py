"""An untested version of vLLM gives a warning; a changed internal function is an error."""

from __future__ import annotations

import pytest

from vbfmt.converters.vllm import internals
from vbfmt.errors import ConfigError


@pytest.mark.parametrize("version", [*internals.TESTED, "0.32.0+cpu"])
def test_tested_versions_are_accepted_silently(vllm, version, caplog):
    vllm.package.__version__ = version
    internals.require()
    assert not caplog.text


@pytest.mark.parametrize("version", ["0.31.0", "0.34.0", "1.0", "dev"])
def test_an_untested_version_gives_a_warning(vllm, version, caplog):
    vllm.package.__version__ = version
    internals.require()
    assert f"vbfmt was tested with vLLM 0.32.0 and 0.33.0, but not with {version};" in caplog.text


def broken(function):
    module, _, name = function.partition(":")
    return module.removeprefix("vllm."), name


def owner_of(vllm, function):
    module, name = broken(function)
    *path, leaf = name.split(".")
    owner = vllm.modules[module]
    for part in path:
        owner = getattr(owner, part)
    return owner, leaf


@pytest.mark.parametrize("function", internals._PARAMETERS)
def test_a_changed_parameter_is_an_error(vllm, function, monkeypatch):
    owner, leaf = owner_of(vllm, function)
    monkeypatch.setattr(owner, leaf, lambda path, something_new: None, raising=False)
    with pytest.raises(ConfigError) as error:
        internals.require()
    name = function.replace(":", ".")
    assert f"this plugin does not support vLLM 0.32.0: {name}: found" in str(error.value)
    assert "use vLLM 0.32.0 or 0.33.0, or serve expanded folders" in str(error.value)


@pytest.mark.parametrize("function", internals._PARAMETERS)
def test_a_missing_function_is_an_error(vllm, function, monkeypatch):
    module, name = broken(function)
    monkeypatch.delattr(vllm.modules[module], name.partition(".")[0])
    with pytest.raises(ConfigError, match="found no such function, expected"):
        internals.require()


@pytest.mark.parametrize(
    "keys", [lambda request: [("lora", request.lora_request.lora_name)], lambda request: []]
)
def test_a_cache_with_the_name_as_its_only_key_is_an_error(vllm, monkeypatch, keys):
    """Requests for a replaced adapter would be answered with cached results of the old one."""
    module = vllm.modules["v1.core.kv_cache_utils"]
    monkeypatch.setattr(module, "_gen_lora_extra_hash_keys", keys)
    with pytest.raises(ConfigError, match="_gen_lora_extra_hash_keys: found no key by path"):
        internals.require()
    monkeypatch.delattr(module, "_gen_lora_extra_hash_keys")
    with pytest.raises(ConfigError, match="found no key by path"):
        internals.require()
