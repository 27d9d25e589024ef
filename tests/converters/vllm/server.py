"""A small Llama, adapters for it, and vLLM's server in a new process, on the loopback interface."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import torch

from tests.converters.gguf.random_adapter import random_adapter
from vbfmt import Adapter

SIZES = {"layers": 2, "hidden": 128, "feed": 256, "kv": 64}
BASE = "base"
NEW_TOKENS = 12
VOCABULARY = 256


def make_base(folder: Path) -> None:
    """Write a Llama with random weights, and a tokenizer with one word for each token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=SIZES["hidden"],
        intermediate_size=SIZES["feed"],
        num_hidden_layers=SIZES["layers"],
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t1"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t1").save_pretrained(folder)


def adapter(seed: int, **sizes: int) -> Adapter:
    """Return an adapter for that Llama that is strong enough to change the generated tokens."""
    return random_adapter(**{**SIZES, "b": 16, "scale": 0.5, "seed": seed, **sizes})


def expected_tokens(folder: Path, adapter: Adapter | None, prompts: list[list[int]]):
    """Return what transformers generates, greedily, with the adapter merged into the weights."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for module, a, b in adapter.iter_factors() if adapter else ():
        delta = torch.from_numpy(b) @ torch.from_numpy(a)
        model.get_submodule(module.name).weight.data += delta
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
        found.append(output[0, len(prompt) :].tolist())
    return found


class Server:
    """vLLM's OpenAI server with the plugin."""

    def __init__(self, base: Path, adapters: Path, log: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = log
        arguments = {
            "model": base,
            "served-model-name": BASE,
            "host": "127.0.0.1",
            "port": self.port,
            "dtype": "float32",
            "max-loras": 2,
            "max-cpu-loras": 2,
            "max-lora-rank": 8,
            "max-model-len": 256,
            "block-size": 32,
        }
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
                *("--enforce-eager", "--enable-lora", "--enable-prefix-caching"),
                *(text for key, value in arguments.items() for text in (f"--{key}", str(value))),
                *options,
            ],
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "VLLM_NO_USAGE_STATS": "1",
                "VBFMT_VLLM_ADAPTERS": str(adapters),
            },
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self, seconds: int = 300) -> None:
        """Wait until the server answers."""
        deadline = time.monotonic() + seconds
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no server: {self.log.read_text()[-4000:]}")
            time.sleep(0.5)

    def stop(self) -> None:
        """End the server and its workers."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def healthy(self) -> bool:
        try:
            return self.request("/health")[0] == 200
        except OSError:
            return False

    def request(self, path: str, body: object = None) -> tuple[int, object]:
        """Return the status and the JSON of the answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=data,
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def complete(self, model: str, prompt: list[int]) -> tuple[int, object]:
        """Return the status, and the new tokens or the error."""
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": NEW_TOKENS,
            "temperature": 0,
            "return_token_ids": True,
        }
        status, answer = self.request("/v1/completions", body)
        if status != 200:
            return status, answer
        return status, answer["choices"][0]["token_ids"]

    def cached_tokens(self) -> float:
        """Return how many tokens of prompts were answered from the prefix cache so far."""
        lines = str(self.request("/metrics")[1]).splitlines()
        (line,) = [line for line in lines if line.startswith("vllm:prefix_cache_hits_total{")]
        return float(line.rpartition(" ")[2])

    def unload(self, name: str) -> int:
        return self.request("/v1/unload_lora_adapter", {"lora_name": name})[0]
