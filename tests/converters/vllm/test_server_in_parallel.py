"""vLLM's own server with tensor parallelism over two workers: `make serving`."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

from tests.converters.vllm import server as serving  # noqa: E402
from vbfmt import save  # noqa: E402

PROMPT = list(range(2, 50))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    serving.make_base(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapters")
    for number in range(4):
        save(serving.adapter(number), path / f"good-{number}.vblora")
        save(serving.adapter(number, feed=128), path / f"bad-{number}.vblora")
    return path


@pytest.fixture(scope="module")
def server(base, folder, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "server.log"
    running = serving.Server(base, folder, log, "--tensor-parallel-size", "2")
    try:
        running.wait()
        yield running
    finally:
        running.stop()


def test_every_adapter_gets_its_own_answer_after_others_were_refused(server, base):
    for number in range(4):
        assert server.complete(f"bad-{number}", PROMPT)[0] == 400
        (right,) = serving.expected_tokens(base, serving.adapter(number), [PROMPT])
        assert server.complete(f"good-{number}", PROMPT) == (200, right)
    (right,) = serving.expected_tokens(base, None, [PROMPT])
    assert server.complete(serving.BASE, PROMPT) == (200, right)
