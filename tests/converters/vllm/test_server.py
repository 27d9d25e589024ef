"""vLLM's own server with the plugin: `make serving`."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

from tests.converters.gguf.random_adapter import adapter_of  # noqa: E402
from tests.converters.vllm import server as serving  # noqa: E402
from vbfmt import Adapter, Module, save  # noqa: E402
from vbfmt._math.admixture import Rows  # noqa: E402
from vbfmt.converters.vllm import lora_path  # noqa: E402

PROMPTS = [[random.Random(seed).randrange(2, 256) for _ in range(40 + seed)] for seed in range(3)]
NAMES = [f"user-{number}" for number in range(6)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    serving.make_base(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with adapters of ranks 3 to 8, one adapter for each seed."""
    path = tmp_path_factory.mktemp("adapters")
    for number, name in enumerate(NAMES):
        save(serving.adapter(number, rank=3 + number), path / f"{name}.vblora")
    return path


@pytest.fixture(scope="module")
def server(base, folder, tmp_path_factory):
    running = serving.Server(base, folder, tmp_path_factory.mktemp("log") / "server.log")
    try:
        running.wait()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def right(base):
    """Return transformers' tokens for each prompt, with merged weights."""
    known = {}

    def tokens(seed, **sizes):
        key = (seed, *sizes.items())
        if key not in known:
            adapter = None if seed is None else serving.adapter(seed, **sizes)
            known[key] = serving.expected_tokens(base, adapter, PROMPTS)
        return known[key]

    return tokens


@pytest.fixture(autouse=True)
def _the_engine_lives(server, right):
    yield
    assert server.healthy()
    assert server.complete(serving.BASE, PROMPTS[0]) == (200, right(None)[0])


def answers(server, name):
    return [server.complete(name, prompt)[1] for prompt in PROMPTS]


def right_of(right, number):
    return right(number, rank=3 + number)


def test_adapters_and_the_base_in_one_batch_give_correct_tokens(server, right):
    """Six adapters in two slots."""
    expected = {serving.BASE: right(None)}
    expected |= {name: right_of(right, number) for number, name in enumerate(NAMES)}
    assert len({str(tokens) for tokens in expected.values()}) == 7
    asked = [(name, number) for number in range(3) for name in expected] * 2
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda ask: server.complete(ask[0], PROMPTS[ask[1]]), asked))
    assert found == [(200, expected[name][number]) for name, number in asked]


PARTS = {
    "the output layer": [Module("lm_head", 128, 256, 4)],
    "parts of fused layers": [
        Module("model.layers.1.self_attn.q_proj", 128, 128, 4),
        Module("model.layers.1.self_attn.v_proj", 128, 64, 2),
        Module("model.layers.0.mlp.up_proj", 128, 256, 4),
    ],
}


@pytest.mark.parametrize("name", PARTS)
def test_an_adapter_of_a_few_layers_gives_correct_tokens(server, folder, base, name):
    adapter = adapter_of(PARTS[name], b=16, scale=1.0)
    save(adapter, folder / f"{name}.vblora")
    assert answers(server, name) == serving.expected_tokens(base, adapter, PROMPTS)


def test_a_replaced_adapter_is_served_after_the_old_one_is_unloaded(server, folder, right):
    """None of its tokens come from the old adapter's entries in the prefix cache."""
    path = folder / "replaced.vblora"
    save(serving.adapter(20), path)
    assert answers(server, "replaced") == right(20)
    save(serving.adapter(21), path, overwrite=True)
    before = server.cached_tokens()
    assert answers(server, "replaced") == right(20)  # the old one, until unloaded
    assert server.cached_tokens() == before + 3 * 32
    assert server.unload("replaced") == 200
    before = server.cached_tokens()
    assert answers(server, "replaced") == right(21)
    assert server.cached_tokens() == before


def test_a_removed_file_is_served_from_memory_until_it_is_unloaded(server, folder, right):
    path = folder / "removed.vblora"
    save(serving.adapter(22), path)
    assert answers(server, "removed") == right(22)
    path.unlink()
    for number, name in enumerate(NAMES):  # these take all slots
        assert answers(server, name) == right_of(right, number)
    assert answers(server, "removed") == right(22)
    assert server.unload("removed") == 200
    assert server.complete("removed", PROMPTS[0])[0] == 404


def test_a_new_file_is_served(server, folder, right):
    assert server.complete("late", PROMPTS[0])[0] == 404
    save(serving.adapter(23), folder / "late.vblora")
    assert answers(server, "late") == right(23)


@pytest.mark.parametrize(
    "name",
    [
        "nobody",
        "../secret",
        "..",
        ".hidden",
        "sub/secret",
        "link",
        "user-0.vblora",
        "folder",
        "pipe",
        "a\0b",
        "x" * 100_000,
        "{absolute}",
    ],
)
def test_names_without_an_adapter_in_the_folder_are_not_found(server, folder, name):
    secret = folder.parent / "secret.vblora"
    if not secret.exists():
        save(serving.adapter(30), secret)
        save(serving.adapter(30), folder / ".hidden.vblora")
        (folder / "sub").mkdir()
        save(serving.adapter(30), folder / "sub" / "secret.vblora")
        (folder / "link.vblora").symlink_to(secret)
        (folder / "folder.vblora").mkdir()
        os.mkfifo(folder / "pipe.vblora")
    name = name.replace("{absolute}", str(secret.with_suffix("")))
    assert server.complete(name, PROMPTS[0])[0] == 404


def damaged(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def with_bias(adapter):
    import dataclasses

    from vbfmt import Tensor

    name = f"{adapter.modules[0].name}.bias"
    return dataclasses.replace(adapter, tensors={name: Tensor.of(np.ones(128, np.float32))})


def enormous():
    """Return an adapter with one byte of rows for each 4 kB of factors. The factors would take 16
    GB."""
    module = Module("model.layers.0.self_attn.q_proj", 1 << 29, 1 << 29, 4)
    count = module.rows(1024)
    rows = Rows(np.zeros((count, 1), np.uint8), np.zeros((count, 0), np.float32))
    return Adapter.from_rows(np.ones((1, 1024), np.float32), {module: rows})


REFUSED = {
    "another-size": (serving.adapter(0, hidden=64, feed=128, kv=32), "another size"),
    "smaller-feed": (serving.adapter(0, feed=128), "another size"),
    "more-layers": (serving.adapter(0, layers=3), "a larger model"),
    "enormous": (enormous(), "a larger model"),
    "rank-9": (serving.adapter(0, rank=9), "greater than max_lora_rank"),
    "a-bias": (with_bias(serving.adapter(0)), "vllm would not load it"),
    "another-prefix": (
        adapter_of([Module("transformer.layers.0.self_attn.q_proj", 128, 128, 4)], b=16),
        "does not have these modules",
    ),
    "a-fused-layer": (
        adapter_of([Module("model.layers.0.self_attn.qkv_proj", 128, 256, 4)], b=16),
        "does not have these modules",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_adapter_that_cannot_be_applied_completely_is_refused(server, folder, name):
    adapter, reason = REFUSED[name]
    save(adapter, folder / f"{name}.vblora", overwrite=True)
    assert server.complete(name, PROMPTS[0])[0] == 400
    assert reason in server.log.read_text()


@pytest.mark.parametrize("where", ["front", "rows", "end"])
def test_a_damaged_adapter_is_refused_and_served_once_it_is_replaced(server, folder, right, where):
    path = folder / f"damaged-{where}.vblora"
    save(serving.adapter(24), path)
    damaged(path, {"front": 20, "rows": path.stat().st_size // 2, "end": -1}[where])
    assert server.complete(path.stem, PROMPTS[0])[0] == 400
    save(serving.adapter(24), path, overwrite=True)
    assert answers(server, path.stem) == right(24)


def test_a_path_is_loaded_only_with_its_digest(server, folder, right):
    path = folder / "by-path.vblora"
    save(serving.adapter(25), path)
    pinned = lora_path(path)

    def load(text):
        body = {"lora_name": "given", "lora_path": text}
        return server.request("/v1/load_lora_adapter", body)

    status, answer = load(str(path))
    assert status == 500
    assert "needs its digest" in answer["error"]["message"]  # vLLM removes paths
    assert load(f"{path}@sha256:{'0' * 64}")[0] == 500
    assert load(pinned)[0] == 200
    assert answers(server, "given") == right(25)
