"""Uses of `forward` that would compute a batch with the wrong adapters are refused."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
import torch

from tests.torch.models import config, llama, tokens
from tests.torch.pool.adapters import ALL, adapter, logits, merged
from vbfmt.errors import ModelError
from vbfmt.torch import AdapterPool, inject

IDS = tokens(rows=1)


@pytest.fixture(scope="module")
def found():
    return {name: adapter(llama, ALL, seed) for seed, name in enumerate("ab")}


@pytest.fixture
def pool(found):
    pool = AdapterPool(llama().eval())
    for name, each in found.items():
        pool.put(name, each)
    return pool


def stream(pool, name, steps=3):
    with pool.forward([name]):
        for _ in range(steps):
            yield logits(pool.model, IDS)


def test_alternating_generators(pool, found):
    one, other = stream(pool, "a"), stream(pool, "b")
    first = next(one)
    with pytest.raises(ModelError, match="another batch .*is suspended.*do not yield or await"):
        next(other)
    assert torch.equal(next(one), first)
    one.close()
    other = next(stream(pool, "b"))
    torch.testing.assert_close(other, logits(merged(llama, found["b"]), IDS))


def test_alternating_coroutines(pool):
    async def work(name):
        with pool.forward([name]):
            await asyncio.sleep(0)
            return logits(pool.model, IDS)

    async def both():
        return await asyncio.gather(work("a"), work("b"), return_exceptions=True)

    one, other = asyncio.run(both())
    assert isinstance(one, torch.Tensor)
    assert isinstance(other, ModelError)
    assert torch.equal(next(stream(pool, "a")), one)


def test_a_block_that_continues_in_another_thread(pool):
    base, steps, errors = logits(pool.model, IDS), stream(pool, "a", steps=1), []

    def begin():
        next(steps)
        assert not torch.equal(logits(pool.model, IDS), base)
        going.set()
        ended.wait(60)
        if not torch.equal(logits(pool.model, IDS), base):
            errors.append("the ended batch still applies in the thread where it began")

    going, ended = threading.Event(), threading.Event()
    thread = threading.Thread(target=begin)
    thread.start()
    assert going.wait(60)
    with pytest.raises(ModelError, match="has ended in a different thread"):
        next(steps)
    ended.set()
    thread.join()
    assert not errors
    assert torch.equal(logits(pool.model, IDS), base)


def test_a_model_that_runs_in_a_different_thread_from_its_block(pool):
    """Transformers' streamers are used in this way."""
    how = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    thread = threading.Thread(target=pool.model.generate, args=(IDS,), kwargs=how)
    with pytest.raises(ModelError, match="ran in a different thread"), pool.forward(["a"]):
        thread.start()
        thread.join()
    with pool.forward([None]):  # no adapter is needed
        logits_of_the_base = threading.Thread(target=logits, args=(pool.model, IDS))
        logits_of_the_base.start()
        logits_of_the_base.join()
    found = []

    def target():
        found.append(pool.generate(IDS, adapter_names=["a"], **how))

    thread = threading.Thread(target=target)
    with pool.forward(["b"]):
        logits(pool.model, IDS)
        thread.start()
        thread.join()
    assert torch.equal(found[0], pool.generate(IDS, adapter_names=["a"], **how))


def test_context_managers_around_a_block_may_be_nested(pool):
    @contextlib.contextmanager
    def served(name):
        with pool.forward([name]):
            yield

    with served("a"):
        one = logits(pool.model, IDS)
        with contextlib.ExitStack() as stack:
            stack.enter_context(served("b"))
            assert not torch.equal(logits(pool.model, IDS), one)
        assert torch.equal(logits(pool.model, IDS), one)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda pool: pool.close(), "the pool is closed"),
        (lambda pool: inject(pool.model, config(target_modules=ALL)), "an adapter was injected"),
    ],
)
def test_changes_of_the_model_within_a_block(pool, change, what):
    with pytest.raises(ModelError, match=what), pool.forward(["a"]):
        change(pool)
        logits(pool.model, IDS)


def test_gradient_checkpointing_is_refused(pool):
    pool.model.train().gradient_checkpointing_enable()
    with pytest.raises(ModelError, match="computes layers again .*checkpointing_disable"):
        next(stream(pool, "a"))
    pool.model.eval()
    next(stream(pool, "a"))
