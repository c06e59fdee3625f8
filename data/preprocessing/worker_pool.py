"""Processes that call one function over and over; one that dies or hangs costs its task, never the run.

Each process has a pipe of its own and one task at a time, so that whose fault a death is, is known for certain.
(pebble 5.2.3's pool, whose processes share one pipe, was tried: it gave up as a whole with "All workers expired"
after 53 and 83 tasks of which every third ended its process at once.)
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from util.errors import UserError

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
MAX_DEATHS = 2  # a killed process may be another's fault (no memory left), so a task is tried twice
TASKS_PER_PROCESS = 500  # then comes a new one: what native libraries leak stays bounded
_MAX_FAILED_STARTS = 3
_POLL_S = 0.5  # how soon a wish to stop is seen
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Failure:
    """What is left of a task whose process died or hung, or whose function raised."""

    reason: str  # "crashed" or "timeout"
    detail: str  # one line for people
    died: bool = False  # the process, by itself


@dataclass(frozen=True)
class _Ready:
    """A process's first word."""


@dataclass(frozen=True)
class Trouble:
    """A UserError of the function: the whole run's matter, as a full disk is."""

    message: str


class FailedStart(Exception):
    """A process ended before it could take a task."""


def never() -> bool:
    """For runs that nobody stops."""
    return False


def answer(function: Callable[[Any], Any], task: Any) -> Any:
    """What `function` returns for the task, or Failure where it raises. Raises UserError."""
    try:
        return function(task)
    except UserError:
        raise
    except Exception as error:  # a mistake of ours in one clip must not cost the others
        words = " ".join(str(error).split())[:200]
        return Failure("crashed", f"{type(error).__name__}: {words}")


def use_one_thread() -> None:
    """One thread each for the libraries that are loaded: it is the processes that make use of the cores."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    if cv2 := sys.modules.get("cv2"):
        cv2.setNumThreads(1)


class IsolatedWorker:
    """A process that calls `function`, which is picklable by its name, with one task after the other.

    It leaves SIGINT and SIGTERM to the process that made it, and ends with that one even by kill -9.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.task: Any = None  # what it is busy with
        self.deaths = 0  # of earlier processes over that task
        self.served = 0  # tasks so far
        self._ready, self._since = False, time.monotonic()
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(function, theirs), name="clip worker")
        with _signals_held_back(), _environment(ONE_THREAD):
            self._process.start()
        theirs.close()

    @property
    def alive(self) -> bool:
        """Is the process still there?"""
        return self._process.is_alive()

    @property
    def signs(self) -> tuple[Connection, int]:
        """What `multiprocessing.connection.wait` can wait for."""
        return self._pipe, self._process.sentinel

    def give(self, task: Any, deaths: int = 0) -> None:
        """Hand out a task. That the process is gone is for `result` to say."""
        self.task, self.deaths, self._since = task, deaths, time.monotonic()
        self.served += 1
        with contextlib.suppress(OSError):
            self._pipe.send(task)

    def result(self, timeout_s: float) -> Any:
        """The task's result or Failure; None as long as there is none. timeout_s: 0 is no limit.

        The process is gone after its death or a time-out. Raises UserError where the function did, and
        FailedStart where the process never came up.
        """
        message = self._message()
        if isinstance(message, _Ready):
            self._ready, self._since = True, time.monotonic()
            message = self._message()
        if isinstance(message, Trouble):
            raise UserError(message.message)
        if message is not None:
            return message
        late = timeout_s > 0 and time.monotonic() - self._since > timeout_s
        if self.alive and not late:
            return None
        died = not self.alive
        self.kill()
        end = f"ended by {_end_of(self._process.exitcode)}" if died else f"took longer than {timeout_s:g} s"
        if not self._ready:
            raise FailedStart(end)
        return Failure("crashed", f"its process {end}", died=True) if died else Failure("timeout", end)

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _message(self) -> Any:
        try:
            return self._pipe.recv() if self._pipe.poll() else None
        except (EOFError, OSError):  # it is dying
            self._process.join(_POLL_S)
            return None


@dataclass
class WorkerPool:
    """`cores` processes for one function, started when there is something to do for them. Close it."""

    function: Callable[[Any], Any]
    cores: int
    timeout_s: float = 0.0  # per task; 0 is no limit
    _workers: list[IsolatedWorker] = field(default_factory=list)
    _again: list[tuple[Any, int]] = field(default_factory=list)  # task, processes that died over it
    _failed_starts: int = 0

    def results(
        self, tasks: Iterable[Any], stopping: Callable[[], bool] = never
    ) -> Iterator[tuple[Any, Any]]:
        """(task, result or Failure) in the order in which they are done.

        Tasks are taken as processes become free. Once `stopping()`, none are, and those under way are finished.
        Raises UserError where the function does.
        """
        source = iter(tasks)
        while True:
            if not stopping():
                self._hand_out(source)
            if not (busy := [w for w in self._workers if w.task is not None]):
                return
            wait([sign for worker in busy for sign in worker.signs], _POLL_S)
            for worker in busy:
                task = worker.task
                if (result := self._collect(worker)) is not None:
                    yield task, result

    def close(self) -> None:
        """End all processes at once, whatever they do."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def _hand_out(self, source: Iterator[Any]) -> None:
        for worker in self._workers:
            if worker.task is None and worker.served >= TASKS_PER_PROCESS:
                worker.kill()
        self._workers = [w for w in self._workers if w.alive or w.task is not None]
        idle = [w for w in self._workers if w.task is None]
        while idle or len(self._workers) < self.cores:
            task, deaths = self._again.pop() if self._again else (next(source, None), 0)
            if task is None:
                return
            if not idle:
                self._workers.append(IsolatedWorker(self.function))
                idle = self._workers[-1:]
            idle.pop().give(task, deaths)

    def _collect(self, worker: IsolatedWorker) -> Any:
        """A busy worker's final result; None where there is none yet. Raises UserError."""
        try:
            result = worker.result(self.timeout_s)
        except FailedStart as end:
            self._failed_starts += 1
            if self._failed_starts == _MAX_FAILED_STARTS:
                raise UserError(
                    f"--nThreads {self.cores}: worker processes don't come up (the last one {end}); "
                    "is memory short? give a smaller --nThreads, or 0 to work in this process"
                ) from None
            self._again.append((worker.task, worker.deaths))
            worker.task = None
            return None
        if result is None:
            return None
        task, worker.task, self._failed_starts = worker.task, None, 0
        if isinstance(result, Failure) and result.died and worker.deaths + 1 < MAX_DEATHS:
            self._again.append((task, worker.deaths + 1))
            return None
        return result


@dataclass
class SameProcess:
    """The same without any process: for a debugger, and where nothing crashes or hangs."""

    function: Callable[[Any], Any]
    cores: int = 1

    def results(
        self, tasks: Iterable[Any], stopping: Callable[[], bool] = never
    ) -> Iterator[tuple[Any, Any]]:
        """(task, result or Failure), one after the other. Raises UserError where the function does."""
        source = iter(tasks)
        use_one_thread()  # as in the processes: sums could differ
        while not stopping() and (task := next(source, None)) is not None:
            yield task, answer(self.function, task)

    def close(self) -> None:
        """Nothing is to be ended."""


def _serve(function: Callable[[Any], Any], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_with_parent()
    use_one_thread()
    pipe.send(_Ready())
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(answer(function, task))
        except UserError as error:
            pipe.send(Trouble(str(error)))


def _end_with_parent() -> None:
    """Be gone when the parent is, however it ended: else two runs could write into one folder."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    if sys.platform == "linux":  # the thread would have to wait for a call that hangs in a library
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=watch, daemon=True).start()


def _end_of(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"exit status {exit_code}"
    with contextlib.suppress(ValueError):
        return f"signal {-exit_code} ({signal.Signals(-exit_code).name})"
    return f"signal {-exit_code}"


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Ctrl-C during the start of a process reaches this one afterwards, and the new one never."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its own start, within a process's, would let them through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
