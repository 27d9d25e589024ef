"""A fake of the parts of vLLM that the plugin uses: the same names and parameters, without
function."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest

VERSION = "0.32.0"


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""


@dataclass
class PPMissingLayer:
    pass


class Registry:
    def __init__(self):
        self.resolvers = {}

    def get_supported_resolvers(self):
        return self.resolvers.keys()

    def register_resolver(self, resolver_name, resolver):
        self.resolvers[resolver_name] = resolver


class LoRAResolver:
    async def resolve_lora(self, base_model_name, lora_name):
        raise NotImplementedError


def keys_of(request):
    lora = request.lora_request
    return [("lora", lora.lora_name, lora.lora_path)]


def layer(in_features, *out_features):
    """Return a linear layer of the served model, fused if there are several outputs."""
    base = SimpleNamespace(input_size=in_features, output_size=sum(out_features))
    if len(out_features) > 1:
        base.output_sizes = list(out_features)
    return SimpleNamespace(base_layer=base)


def attention(hidden, kv, *, head=8, ranks=1):
    """Return fused queries, keys and values. Each rank holds at least one head of keys and
    values."""
    sharded = max(kv, head * ranks)
    base = SimpleNamespace(
        input_size=hidden,
        output_size=hidden + 2 * sharded,
        output_sizes=[hidden, sharded, sharded],
        head_size=head,
        v_head_size=head,
        total_num_heads=hidden // head,
        total_num_kv_heads=kv // head,
    )
    return SimpleNamespace(base_layer=base)


@dataclass
class Manager:
    """vLLM's `LoRAModelManager` for a Llama of two layers, with the modules of `random_adapter`."""

    modules: dict
    packed_modules: dict
    is_pooling_model: bool = False
    elsewhere: tuple = ()
    model: object = field(init=False)

    def __post_init__(self):
        named = [(name, PPMissingLayer()) for name in self.elsewhere]
        self.model = SimpleNamespace(named_modules=lambda: iter(named))

    @classmethod
    def of_llama(cls, *, layers=2, hidden=32, feed=48, kv=16, ranks=1, **options):
        modules, packed = {}, {}
        for number in range(layers):
            block = f"model.layers.{number}.self_attn"
            mlp = f"model.layers.{number}.mlp"
            modules[f"{block}.qkv_proj"] = attention(hidden, kv, ranks=ranks)
            modules[f"{block}.o_proj"] = layer(hidden, hidden)
            modules[f"{mlp}.gate_up_proj"] = layer(hidden, feed, feed)
            modules[f"{mlp}.down_proj"] = layer(feed, hidden)
            packed[f"{block}.qkv_proj"] = [f"{block}.{part}_proj" for part in "qkv"]
            packed[f"{mlp}.gate_up_proj"] = [f"{mlp}.{part}_proj" for part in ("gate", "up")]
        return cls(modules, packed, **options)


def faulty_shrink(
    inputs, lora_b_weights, output_tensor, lora_indices_tensor, scaling=1.0
):  # as in vLLM 0.32
    import torch

    factors = lora_b_weights[lora_indices_tensor]
    output_tensor[:] = scaling * torch.einsum("bi, boi -> bo", inputs, factors)


def _helper():
    class PEFTHelper:
        @classmethod
        def from_local_dir(cls, lora_path, max_position_embeddings):
            return f"the config in {lora_path}"

        @classmethod
        def from_dict(cls, config_dict):
            return SimpleNamespace(**config_dict)

    return PEFTHelper


def _model():
    class LoRAModel:
        def __init__(self, loras):
            self.loras = loras

        @classmethod
        def from_local_checkpoint(
            cls,
            lora_dir,
            expected_lora_modules,
            peft_helper,
            *,
            lora_model_id=None,
            device="cuda",
            dtype=None,
            model_vocab_size=None,
            weights_mapper=None,
            skip_prefixes=None,
            moe_ep_spec=None,
        ):
            return f"the tensors in {lora_dir}"

        @classmethod
        def from_lora_tensors(
            cls,
            lora_model_id,
            tensors,
            peft_helper,
            device="cuda",
            dtype=None,
            model_vocab_size=None,
            weights_mapper=None,
            skip_prefixes=None,
        ):
            loras = {}
            for key, tensor in tensors.items():
                if any(f".{prefix}" in key for prefix in skip_prefixes or ()):
                    continue
                name, _, factor = key.removesuffix(".weight").rpartition(".lora_")
                name = name.removeprefix("base_model.model.")
                weights = loras.setdefault(name, SimpleNamespace())
                setattr(weights, f"lora_{factor.lower()}", tensor.to(dtype=dtype))
            return cls(loras)

    return LoRAModel


def _manager(helper, model):
    class WorkerLoRAManager:
        def __init__(self, manager, **options):
            self._adapter_manager = manager
            self.options = options

        def _load_adapter(self, lora_request):
            config = helper.from_local_dir(lora_request.lora_path, 512)
            return model.from_local_checkpoint(
                lora_request.lora_path,
                set(),
                peft_helper=config,
                lora_model_id=lora_request.lora_int_id,
                device="cpu",
                **self.options,
            )

    return WorkerLoRAManager


def _mixin():
    class LoRAModelRunnerMixin:
        def add_lora(self, lora_request):
            return self.lora_manager.add_adapter(lora_request)

        def remove_lora(self, lora_id):
            return self.lora_manager.remove_adapter(lora_id)

    return LoRAModelRunnerMixin


def _executor():
    class Executor:
        """Several workers, each with a queue of answers, as in vLLM's executor."""

        def __init__(self, workers):
            self.workers = workers
            self.queues = [[] for _ in workers]

        def collective_rpc(self, method, args=()):
            for worker, queue in zip(self.workers, self.queues, strict=True):
                try:
                    queue.append((True, getattr(worker, method)(*args)))
                except Exception as error:  # noqa: BLE001
                    queue.append((False, str(error)))
            answers = []
            for queue in self.queues:
                sound, answer = queue.pop(0)
                if not sound:
                    raise RuntimeError(f"Worker failed with error '{answer}'")
                answers.append(answer)
            return answers

        def add_lora(self, lora_request):
            return all(self.collective_rpc("add_lora", args=(lora_request,)))

    return Executor


@pytest.fixture
def vllm(monkeypatch):
    """Make imports of vLLM return these fakes, and return them by name."""
    helper, model, registry = _helper(), _model(), Registry()
    parts = {
        "vllm": {"__version__": VERSION},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.lora.resolver": {"LoRAResolverRegistry": registry, "LoRAResolver": LoRAResolver},
        "vllm.lora.peft_helper": {"PEFTHelper": helper},
        "vllm.lora.lora_model": {"LoRAModel": model},
        "vllm.lora.worker_manager": {"WorkerLoRAManager": _manager(helper, model)},
        "vllm.lora.ops": {},
        "vllm.lora.ops.torch_ops": {},
        "vllm.lora.ops.torch_ops.lora_ops": {"bgmv_shrink": faulty_shrink},
        "vllm.lora.punica_wrapper": {},
        "vllm.lora.punica_wrapper.punica_cpu": {"bgmv_shrink": faulty_shrink},
        "vllm.model_executor": {},
        "vllm.model_executor.models": {},
        "vllm.model_executor.models.utils": {"PPMissingLayer": PPMissingLayer},
        "vllm.v1": {},
        "vllm.v1.core": {},
        "vllm.v1.executor": {},
        "vllm.v1.executor.abstract": {"Executor": _executor()},
        "vllm.v1.worker": {},
        "vllm.v1.worker.lora_model_runner_mixin": {"LoRAModelRunnerMixin": _mixin()},
        "vllm.v1.core.kv_cache_utils": {"_gen_lora_extra_hash_keys": keys_of},
    }
    found = {}
    for name, values in parts.items():
        module = ModuleType(name)
        module.__dict__.update(values)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
        found[name.removeprefix("vllm.")] = module
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], leaf, module)
    return SimpleNamespace(
        modules=found, registry=registry, helper=helper, model=model, package=found["vllm"]
    )
