"""Handle an adapter that one of several workers refuses (tensor and pipeline parallelism).

vLLM's executor stops reading at the first worker that answers a call with an error. The other
answers stay in the queue, and the executor mistakes them for answers to its next call. It then
refuses an adapter because of an earlier one, or accepts an adapter that a worker has refused. So
the plugin makes workers return a `Refused` instead of an error, and the executor raises an error
after it has read all answers.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Any

from vbfmt.errors import LONGEST_PIECE, VbfmtError, printable

_logger = logging.getLogger("vllm.vbfmt")

_MARK = "_vbfmt_original"
_LONGEST_REASON = 1000
"""Largest length of a reason, in characters. This library's messages are shorter."""


@dataclass(frozen=True)
class Refused:
    """The answer of a worker that refuses an adapter. Unlike other answers, it is falsy.

    Attributes:
        reason: the error's message.
    """

    reason: str

    def __bool__(self) -> bool:
        return False


def install() -> None:
    """Wrap `add_lora` of vLLM's workers and executor. Later calls in the same process do
    nothing."""
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

    if hasattr(Executor.add_lora, _MARK):
        return
    in_worker = LoRAModelRunnerMixin.add_lora
    in_executor = Executor.add_lora

    @functools.wraps(in_worker)
    def answer(self: Any, lora_request: Any) -> Any:
        try:
            return in_worker(self, lora_request)
        except Exception as error:
            # The name comes from a client, who must not be able to add lines to the log.
            reason = printable(str(error)[:_LONGEST_REASON])
            _logger.warning(
                "LoRA %s is refused: %s",
                printable(str(lora_request.lora_name)[:LONGEST_PIECE]),
                reason,
                exc_info=not isinstance(error, VbfmtError),
            )
            return Refused(reason)

    @functools.wraps(in_executor)
    def ask(self: Any, lora_request: Any) -> bool:
        return _ask_all(self, lora_request)

    setattr(ask, _MARK, in_executor)
    LoRAModelRunnerMixin.add_lora = answer
    Executor.add_lora = ask


def _ask_all(executor: Any, lora_request: Any) -> bool:
    """Add a LoRA to every worker. If one refuses it, remove it from all.

    Raises:
        ValueError: a worker refuses it.
    """
    answers = executor.collective_rpc("add_lora", args=(lora_request,))
    reasons = [answer.reason for answer in answers if isinstance(answer, Refused)]
    if not reasons:
        return all(answers)
    if len(reasons) < len(answers):
        executor.collective_rpc("remove_lora", args=(lora_request.lora_int_id,))
    raise ValueError(reasons[0])
