"""The plugin with vLLM's own files from the wheel at ``VLLM_WHEEL``, without a server."""

from __future__ import annotations

import ast
import os
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.converters.gguf.random_adapter import random_adapter  # noqa: E402
from tests.converters.own_files import own_files as own_files  # noqa: E402
from tests.converters.vllm.fakes import Manager, keys_of  # noqa: E402
from vbfmt import save  # noqa: E402
from vbfmt.converters.vllm import internals, lora_path, worker  # noqa: E402

NAMES = (
    "exceptions",
    "lora.peft_helper",
    "lora.lora_weights",
    "lora.utils",
    "lora.lora_model",
    "lora.resolver",
    "lora.ops.torch_ops.lora_ops",
    "lora.worker_manager",
)


@pytest.fixture
def vllm(own_files, monkeypatch):
    modules = dict(
        zip(NAMES, own_files("VLLM_WHEEL", *(f"vllm.{name}" for name in NAMES)), strict=True)
    )
    modules["lora.lora_model"].PIN_MEMORY = False
    return modules


def parsed(module):
    with zipfile.ZipFile(os.environ["VLLM_WHEEL"]) as wheel:
        return ast.parse(wheel.read(module.replace(".", "/") + ".py"))


def parameters_in_text(function):
    module, _, name = function.partition(":")
    node = parsed(module)
    for part in name.split("."):
        (node,) = [each for each in node.body if getattr(each, "name", None) == part]
    return " ".join(argument.arg for argument in node.args.args)


def test_the_functions_have_the_expected_parameters(vllm):
    for function, parameters in internals._PARAMETERS.items():
        if function.startswith("vllm.v1."):  # these import most of vLLM
            assert parameters_in_text(function) == parameters, function
        else:
            assert internals._parameters_of(function) == parameters, function


def test_the_worker_loads_every_factor_of_a_packed_adapter(vllm, tmp_path, monkeypatch):
    adapter = random_adapter(layers=2, hidden=32, feed=48, kv=16, b=8)
    save(adapter, tmp_path / "x.vblora")
    worker.install()
    manager = object.__new__(vllm["lora.worker_manager"].WorkerLoRAManager)
    served = Manager.of_llama()
    monkeypatch.setattr("vbfmt.converters.vllm.fit._on_other_ranks", lambda model: ())
    served.model = SimpleNamespace()
    for name in ("_validate_moe_lora_format", "_validate_modules_to_save"):
        setattr(served, name, lambda lora: None)
    for name in ("_validate_token_classification_lora", "_validate_classification_head_lora"):
        setattr(served, name, lambda lora: None)
    served.supported_lora_modules, served.packed_modules_mapping = [], {}
    served.moe_ep_load_spec = None
    manager._adapter_manager = served
    manager._lora_model_cls = vllm["lora.lora_model"].LoRAModel
    manager.max_position_embeddings, manager.vocab_size = 512, 64
    manager.lora_config = SimpleNamespace(max_lora_rank=8, lora_dtype=torch.float32)
    request = SimpleNamespace(
        lora_name="x",
        lora_int_id=1,
        lora_path=lora_path(tmp_path / "x.vblora"),
        is_3d_lora_weight=False,
    )
    loaded = manager._load_adapter(request)
    assert set(loaded.loras) == {module.name for module in adapter}
    for module in adapter:
        a, b = adapter.factors(module.name)
        found = loaded.loras[module.name]
        np.testing.assert_array_equal(found.lora_a.numpy(), a)
        np.testing.assert_array_equal(found.lora_b.numpy(), b)
        assert found.scaling == 1.0


def test_the_cache_key_has_the_path_of_the_lora(vllm):
    """Only the function is tested, because its file imports most of vLLM."""
    tree = parsed("vllm.v1.core.kv_cache_utils")
    name = "_gen_lora_extra_hash_keys"
    (function,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    function.returns, function.args.args[0].annotation = None, None
    scope = {}
    exec(compile(ast.Module([function], []), "kv_cache_utils.py", "exec"), scope)
    lora = SimpleNamespace(lora_name="x", name="x", lora_path="/x", path="/x")
    request = SimpleNamespace(lora_request=lora)
    assert scope[name](request) == keys_of(request)
