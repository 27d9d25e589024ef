"""The plugin, loaded by vLLM itself in a new process: `make serving`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow


def started(folder, before=""):
    """Run some code and then vLLM's function that loads plugins, in a new process."""
    code = f"""
import vllm
{before}
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.lora.resolver import LoRAResolverRegistry
print("resolvers:", *LoRAResolverRegistry.get_supported_resolvers())
"""
    environment = {
        **os.environ,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    environment.pop("VBFMT_VLLM_ADAPTERS", None)
    if folder is not None:
        environment["VBFMT_VLLM_ADAPTERS"] = str(folder)
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )


def output(done):
    return done.stdout + done.stderr


def test_the_plugin_is_found_by_its_entry_point(tmp_path):
    done = started(tmp_path)
    assert done.returncode == 0, output(done)
    assert "resolvers: vbfmt" in done.stdout
    assert "vbfmt was tested with" not in output(done)


def test_without_a_folder_nothing_is_changed():
    done = started(None)
    assert done.returncode == 0, output(done)
    assert "resolvers:\n" in done.stdout


def test_another_version_of_vllm_gives_a_warning(tmp_path):
    done = started(tmp_path, "vllm.__version__ = '0.99.0'")
    assert done.returncode == 0, output(done)
    assert "vbfmt was tested with vLLM 0.32.0 and 0.33.0, but not with 0.99.0" in output(done)


@pytest.mark.parametrize(
    "change",
    [
        "from vllm.lora.peft_helper import PEFTHelper as P; P.from_local_dir = lambda path: None",
        "import vllm.v1.core.kv_cache_utils as u; u._gen_lora_extra_hash_keys = lambda request: []",
    ],
    ids=["a parameter", "the cache's key"],
)
def test_a_changed_internal_function_stops_the_server(tmp_path, change):
    done = started(tmp_path, change)
    assert done.returncode != 0
    assert "ConfigError: this plugin does not support vLLM 0.32.0" in output(done)


def test_a_missing_folder_stops_the_server(tmp_path):
    done = started(tmp_path / "nowhere")
    assert done.returncode != 0
    assert "ConfigError: no folder of adapters: found" in output(done)
