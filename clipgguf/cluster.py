"""Conversions on a Dask cluster: its workers run the processes that a batch runs on one machine."""

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path

from distributed import Client, Future, KilledWorker, Reschedule, Worker, WorkerPlugin, as_completed, get_worker

from clipgguf import __version__
from clipgguf.batches import Doing, Heard, Outcome, Task
from clipgguf.children import Children
from clipgguf.errors import ClipGGUFError

# So long is waited for workers to end their processes, and so long for the scheduler to hear that nobody listens.
_END_SECONDS, _CLOSE_SECONDS = 10.0, 2.0
# How often a task that never ran is given to the cluster anew, because workers died that had it in their queues.
_MOST_TIMES = 16


def _version() -> str:
    return __version__


def _compare_version(address: str, found: str, expected: str) -> None:
    if found != expected:
        raise ClipGGUFError(f"{address}: has clipgguf {found}, should be {expected}, as where `clipgguf batch` runs")


class _Processes(WorkerPlugin):  # type: ignore[misc] # The extra "dask" may be missing.
    """On each worker, the processes of one run; they end when the run does, or when the worker closes."""

    def __init__(self, directory: Path) -> None:
        """Take the directory that they run in, as workers see it."""
        self.directory, self.version = directory, __version__

    def setup(self, worker: Worker) -> None:
        """Start none yet. Raises ClipGGUFError where the directory is missing, or clipgguf is of another version."""
        _compare_version(worker.address, __version__, self.version)
        if not self.directory.is_dir():
            what = "is missing, should be the directory that `clipgguf batch` runs in, under the same path"
            raise ClipGGUFError(f"{worker.address}: {self.directory}: {what}")
        self.children = Children(self.directory)

    async def teardown(self, worker: Worker) -> None:
        """End what runs."""
        await asyncio.to_thread(self.children.__exit__)


def _outcome(task: Task, run: str) -> Outcome:
    """Do a task on a worker, in a process of its own. What is said for it goes to the run's topic, a beginning first.

    What it gives on a worker that closes meanwhile is dropped by that: the scheduler has another do it.
    """
    worker = get_worker()
    if (processes := worker.plugins.get(run)) is None:  # The run is over, which the worker has not heard yet.
        raise Reschedule
    worker.log_event(run, [task.line.number, None])
    return task.outcome(processes.children, lambda number, text: worker.log_event(run, [number, text]))


class _Run:
    """Tasks on a cluster, and their outcomes as they come."""

    def __init__(self, client: Client, name: str, tasks: Sequence[Task], heard: Heard) -> None:
        """Hand all tasks to the cluster."""
        self._client, self._name, self._heard = client, name, heard
        # By the line's number: how often a worker began with it, and when last; how often the cluster was given it.
        self._begun: Counter[int] = Counter()
        self._given: Counter[int] = Counter()
        self._since = {task.line.number: time.monotonic() for task in tasks}
        client.subscribe_topic(name, self._hear)
        self.futures: dict[Future, Task] = {self._submit(task): task for task in tasks}

    def _submit(self, task: Task) -> Future:
        self._given[task.line.number] += 1
        key = f"{self._name}-{task.line.number}-{self._given[task.line.number]}"
        return self._client.submit(_outcome, task, self._name, key=key, pure=False)

    def _hear(self, event: tuple[float, tuple[int, str | None]]) -> None:
        number, text = event[1]
        if text is None:
            self._begun[number] += 1
            self._since[number] = time.monotonic()
        else:
            self._heard(number, text)

    def outcomes(self) -> Iterator[Outcome]:
        """Yield outcomes as they come. Raises ClipGGUFError when the scheduler is gone."""
        completed = as_completed(list(self.futures), loop=self._client.loop)
        for future in completed:
            task = self.futures.pop(future)
            number = task.line.number
            try:
                outcome = future.result()
            except KilledWorker as e:
                # All tasks that a worker had in its queue are counted as if they had killed it.
                if self._begun[number] <= e.allowed_failures and self._given[number] < _MOST_TIMES:
                    completed.add(again := self._submit(task))
                    self.futures[again] = task
                    continue
                why = (
                    f"{e.allowed_failures + 1} workers died while they had it, the last of them {e.last_worker.address}"
                )
                outcome = Outcome.failed(task.line, time.monotonic() - self._since[number], why)
            except (CancelledError, asyncio.CancelledError) as e:
                raise ClipGGUFError(f"{self._client.scheduler.address}: the scheduler does not answer any more") from e
            except Exception as e:
                outcome = Outcome.failed(task.line, time.monotonic() - self._since[number], _text(e))
            yield outcome


def _text(error: Exception) -> str:
    """Return what an error of Dask's says, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def done_on(address: str, said: Callable[[str], None]) -> Doing:
    """Return how tasks are done on the cluster of the scheduler at an address, tcp://HOST:PORT.

    ``said`` gets a line that says how many workers there are. What is done raises ClipGGUFError when no scheduler
    answers, or the workers are not such as can do it.
    """

    @contextmanager
    def doing(tasks: Sequence[Task], heard: Heard) -> Iterator[Iterator[Outcome]]:
        name = f"clipgguf-batch-{secrets.token_hex(8)}"
        try:
            client = Client(address, set_as_default=False)
        except (OSError, ValueError) as e:
            raise ClipGGUFError(f"{address}: is no Dask scheduler that answers: {e}") from e
        run = None
        try:
            try:
                _compare_version(address, client.run_on_scheduler(_version), __version__)
                client.register_plugin(_Processes(Path.cwd()), name=name)
                threads = client.nthreads().values()
            except ClipGGUFError:
                raise
            except Exception as e:
                raise ClipGGUFError(f"{address}: its scheduler and workers do not all run clipgguf: {_text(e)}") from e
            said(f"{address}: {len(threads):,} workers, {sum(threads):,} models at a time; more may come")
            run = _Run(client, name, tasks, heard)
            yield run.outcomes()
        finally:
            _end(client, name, run)

    return doing


def _end(client: Client, name: str, run: _Run | None) -> None:
    """Take back what is not done, and end its processes, as far as the cluster answers."""
    with contextlib.suppress(Exception, asyncio.CancelledError):
        if run is not None and run.futures:
            client.sync(client.cancel, list(run.futures), callback_timeout=_END_SECONDS)
        client.sync(client.unregister_worker_plugin, name, callback_timeout=_END_SECONDS)
    with contextlib.suppress(Exception, asyncio.CancelledError):
        client.close(timeout=_CLOSE_SECONDS)
