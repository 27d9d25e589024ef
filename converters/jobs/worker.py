"""Start, run and stop a worker process of the pool.

It is forked from a server process that has imported this library and has no other threads, or
spawned on systems without fork servers. It ends when the process that runs the job ends, even if
that is killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import spawn
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

from vbfmt.converters.jobs.tasks import MODULES, Item, Outcome, Task, run_shard
from vbfmt.errors import StorageError

_PATIENCE = 10.0
"""Seconds that a worker has to remove unfinished outputs when the job is interrupted."""

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_OTHER_FILES = 24
"""Number of other open files that this process may need: standard streams, inputs, outputs and
libraries."""

_STARTING = threading.Lock()

Shard = tuple[int, Sequence[Item]]
"""A shard's number and items."""


def affordable(workers: int) -> int:
    """Return the smaller of `workers` and the number of workers that the limit on open files
    allows, at least 1.

    This process opens three files per worker; the fork server opens one.
    """
    if sys.platform == "win32":
        return workers
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return workers
    return max(1, min(workers, (limit - _OTHER_FILES) // 3))


def start_server(task: Task) -> None:
    """Start the fork server, which imports this library while the job is planned."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver

        preloaded = [__name__, *MODULES[task.operation]]
        multiprocessing.get_context("forkserver").set_forkserver_preload(preloaded)
        with _inheritable(task):
            forkserver.ensure_running()


class Worker:
    """A worker process and the shard that it runs.

    Attributes:
        shard: the shard.
        connection: becomes readable when the shard is done or the process has died.
    """

    def __init__(self, task: Task, shard: Shard) -> None:
        methods = multiprocessing.get_all_start_methods()
        method = "forkserver" if "forkserver" in methods else "spawn"
        context: Any = multiprocessing.get_context(method)
        self.connection, theirs = context.Pipe()
        environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1")}
        # A daemon process is terminated if the interpreter exits before the job has ended.
        self._process = context.Process(target=_work, args=(task, theirs, environment), daemon=True)
        try:
            with _inheritable(task):
                self._process.start()
        except (OSError, EOFError) as error:
            ended = isinstance(error, (EOFError, ConnectionError))
            reason = "the fork server has ended" if ended else str(error)
            raise StorageError(
                "cannot start a worker process", found=reason, advice="give fewer `workers`"
            ) from None
        theirs.close()
        self.run(shard)

    def run(self, shard: Shard) -> bool:
        """Send the process its next shard. Return False if the process has died."""
        self.shard = shard
        try:
            self.connection.send(shard[1])
        except OSError:
            return False
        return True

    def outcomes(self) -> list[Outcome] | None:
        """Wait for the outcomes of the shard, and return them, or None if the process has died."""
        try:
            found: list[Outcome] | str = self.connection.recv()
        except (EOFError, OSError):
            return None
        if isinstance(found, str):
            raise RuntimeError(f"a worker process failed:\n{found}")
        return found

    def terminate(self) -> None:
        """Ask the process to end. It first removes unfinished outputs."""
        self.connection.close()
        if self._process.is_alive():
            self._process.terminate()

    def join(self) -> None:
        """Wait until the process has ended. Kill it if that takes longer than `_PATIENCE`."""
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextlib.contextmanager
def stopped_at_end() -> Iterator[list[Worker]]:
    """Yield an empty list. When the block ends, stop all workers that were put into it."""
    running: list[Worker] = []
    try:
        yield running
    finally:
        stop(running)


def stop(workers: Sequence[Worker]) -> None:
    """Stop the processes of workers, all at the same time."""
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join()


def ready(running: Sequence[Worker]) -> list[Worker]:
    """Wait until some workers are done or dead, and return these."""
    readable = wait([worker.connection for worker in running])
    return [worker for worker in running if worker.connection in readable]


def _work(task: Task, connection: Connection, environment: Mapping[str, str]) -> None:
    """Run shards until the connection is closed."""
    _begin(environment)
    with contextlib.suppress(EOFError, OSError):
        while True:
            shard = connection.recv()
            try:
                found: list[Outcome] | str = run_shard(task, shard)
            except Exception:  # noqa: BLE001 - a bug in this library, which the job raises
                found = traceback.format_exc()
            connection.send(found)


def _begin(environment: Mapping[str, str]) -> None:
    """Prepare a worker process.

    Set the environment variables of the caller, which may differ from the server's. End when the
    caller ends or asks for it.
    """
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the caller gets the signal too, and stops the workers
    signal.signal(signal.SIGTERM, _end)
    _keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _keep_freed_memory() -> None:
    """Make glibc keep freed blocks for reuse.

    Otherwise it returns each large block to the system, which has to clear it again. After a block
    is freed, glibc keeps all freed blocks up to its size, at most 32 MiB (mallopt,
    M_MMAP_THRESHOLD). Other C libraries are not affected.
    """
    bytearray(31 << 20)


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the clean-up
    sys.exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def _inheritable(task: Task) -> Iterator[None]:
    """In the block, set up this process as a new process should inherit it."""
    with _STARTING, _without_interrupts(), _one_thread_each(), _without_main(task):
        yield


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block SIGINT in new processes. The caller gets it too, and stops the workers."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # unblocks SIGINT if it starts its process later
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Limit numerical libraries to one thread, since the workers use all CPU cores.

    A spawned process must have these variables when it imports NumPy.
    """
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _without_main(task: Task) -> Iterator[None]:
    """Prevent new processes from running the caller's script again.

    The script may lack a ``__main__`` guard, or be read from standard input. If options of the task
    are defined in the script, the processes need it and do run it.
    """
    if b"__main__" in pickle.dumps(task):
        yield
        return
    complete: Any = spawn.get_preparation_data

    def prepared(name: str) -> dict[str, Any]:
        found = complete(name)
        return {key: found[key] for key in found if not key.startswith("init_main")}

    spawn.get_preparation_data = prepared
    try:
        yield
    finally:
        spawn.get_preparation_data = complete
