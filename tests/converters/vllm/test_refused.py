"""Requests after an adapter that some workers refuse."""

from __future__ import annotations

import pytest

from tests.converters.vllm.fakes import LoRARequest
from vbfmt.converters.vllm import refused
from vbfmt.errors import ModelError


class Adapters:
    """A worker's adapters, which refuse some names."""

    def __init__(self, *bad):
        self.bad, self.there = bad, set()

    def add_adapter(self, request):
        if request.lora_name in self.bad:
            raise ModelError("the adapter was trained on another model", found=request.lora_name)
        self.there.add(request.lora_int_id)
        return True

    def remove_adapter(self, lora_id):
        found = lora_id in self.there
        self.there.discard(lora_id)
        return found


@pytest.fixture
def executor(vllm):
    """Return an executor with two workers: both refuse "bad", and only the second refuses
    "torn"."""
    mixin = vllm.modules["v1.worker.lora_model_runner_mixin"].LoRAModelRunnerMixin
    runners = [mixin(), mixin()]
    runners[0].lora_manager, runners[1].lora_manager = Adapters("bad"), Adapters("bad", "torn")
    return vllm.modules["v1.executor.abstract"].Executor(runners)


def there(executor):
    return [runner.lora_manager.there for runner in executor.workers]


def test_vllm_itself_gets_out_of_step(executor):
    with pytest.raises(RuntimeError, match="found bad"):
        executor.add_lora(LoRARequest("bad", 1))
    with pytest.raises(RuntimeError, match="found bad"):
        executor.add_lora(LoRARequest("good", 2))


def test_every_adapter_gets_its_own_answer(executor):
    refused.install()
    for number in range(3):
        with pytest.raises(ValueError, match="trained on another model: found bad"):
            executor.add_lora(LoRARequest("bad", 10 * number + 1))
        assert executor.add_lora(LoRARequest("good", 10 * number + 2)) is True
        assert executor.queues == [[], []]
    assert there(executor) == [{2, 12, 22}] * 2


def test_an_adapter_that_one_worker_refuses_is_removed_from_all(executor):
    refused.install()
    with pytest.raises(ValueError, match="found torn"):
        executor.add_lora(LoRARequest("torn", 1))
    assert there(executor) == [set(), set()]
    assert executor.add_lora(LoRARequest("good", 2)) is True


def test_installing_twice_wraps_once(vllm):
    refused.install()
    once = vllm.modules["v1.executor.abstract"].Executor.add_lora
    refused.install()
    assert vllm.modules["v1.executor.abstract"].Executor.add_lora is once


def test_a_name_from_a_client_adds_no_lines_to_the_log(executor, caplog):
    refused.install()
    name = "bad\nERROR all adapters are lost\x1b[2J" + "x" * 10_000
    for runner in executor.workers:
        runner.lora_manager.bad = (name,)
    with pytest.raises(ValueError, match="trained on another model") as error:
        executor.add_lora(LoRARequest(name, 1))
    for line in (*caplog.messages, str(error.value)):
        assert line.isprintable()
        assert len(line) < 1500
