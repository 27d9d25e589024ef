"""vLLM's own server with the plugin and a store: `make serving`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

from tests.converters.vllm import server as serving  # noqa: E402
from tests.converters.vllm.test_server import PROMPTS  # noqa: E402
from vbfmt.store import Store  # noqa: E402

SIZES = [{"rank": 3}, {"rank": 8}, {"rank": 4, "layers": 1}]


def test_adapters_of_a_store_and_the_base_give_correct_tokens(tmp_path):
    serving.make_base(tmp_path / "base")
    store = Store(tmp_path / "store", create=True)
    expected = {serving.BASE: serving.expected_tokens(tmp_path / "base", None, PROMPTS)}
    for number, sizes in enumerate(SIZES):
        adapter = serving.adapter(number, **sizes)
        store.add(adapter, name=f"users/{number}")
        tokens = serving.expected_tokens(tmp_path / "base", adapter, PROMPTS)
        expected[f"users/{number}"] = tokens
    for name, sizes in {"small": {"feed": 128}, "large": {"layers": 9}}.items():
        store.add(serving.adapter(0, **sizes), name=name)
    digest = store.resolve("users/0")

    server = serving.Server(tmp_path / "base", tmp_path / "store", tmp_path / "log")
    try:
        server.wait(550)
        asked = [(name, number) for number in range(3) for name in expected]
        with ThreadPoolExecutor(len(asked)) as pool:
            found = list(pool.map(lambda ask: server.complete(ask[0], PROMPTS[ask[1]]), asked))
        assert found == [(200, expected[name][number]) for name, number in asked]
        names = ("small", "large", "nobody", digest, "users/../users/0")
        statuses = {name: server.complete(name, PROMPTS[0])[0] for name in names}
        assert statuses == {**dict.fromkeys(names, 404), "small": 400, "large": 400}
        store.tag("users/0", store.resolve("users/1"), replaces=digest)
        assert server.unload("users/0") == 200
        assert server.complete("users/0", PROMPTS[0]) == (200, expected["users/1"][0])
        assert server.healthy()
    finally:
        server.stop()
