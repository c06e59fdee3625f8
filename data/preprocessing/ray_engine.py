"""The same work as tasks of a Ray cluster: `--engine ray`, an optional extra (requirements-ray.txt).

Every machine needs this folder, its .venv, --dataroot and --out at the same paths. A Ray task hands its clip to a
child process of its own (data.preprocessing.worker_pool), so a clip that dies or hangs ends with the same reason as
locally and costs no Ray worker. Ray itself moves functions and results by cloudpickle, between processes that it
started; no file is ever unpickled. The index is written by the process that runs `results` alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data.preprocessing.worker_pool import ONE_THREAD, Failure, Trouble, WorkerPool, never
from util.errors import UserError

_REPO = Path(__file__).resolve().parents[1]
_AHEAD = 2  # tasks per core that are handed in: one works, one waits
_POLL_S = 0.5
_MAX_RETRIES = 2  # of a task whose machine was lost
_STORE_BYTES = 100_000_000  # of a cluster of our own: results are a line each
_child: WorkerPool | None = None  # in a Ray worker: its own child process


class RayEngine:
    """Calls one function on a Ray cluster, as `WorkerPool` does here. Close it.

    address: "local" starts a cluster of `cores` on this machine, "auto" looks for a running one, HOST:PORT names
    it. A running cluster is used as a whole. It is connected to when there is something to do.
    """

    def __init__(self, function: Callable[[Any], Any], cores: int, timeout_s: float, address: str) -> None:
        self.cores = max(cores, 1)
        self._function, self._timeout_s, self._address = function, timeout_s, address
        self._ray = _import_ray()

    def results(
        self, tasks: Iterable[Any], stopping: Callable[[], bool] = never
    ) -> Iterator[tuple[Any, Any]]:
        """(task, result or Failure) in the order in which they are done; as `WorkerPool.results`."""
        source, under_way = iter(tasks), {}
        remote = function = None
        while True:
            while (
                not stopping()
                and len(under_way) < _AHEAD * self.cores
                and (task := next(source, None)) is not None
            ):
                if remote is None:
                    remote, function = self._connect()
                under_way[remote.remote(function, task, self._timeout_s)] = task
            if not under_way:
                return
            done, _ = self._ray.wait(list(under_way), num_returns=1, timeout=_POLL_S)
            for reference in done:
                yield under_way.pop(reference), self._result_of(reference)

    def close(self) -> None:
        """Leave the cluster; what is under way there ends. One of our own ends altogether."""
        self._ray.shutdown()

    def _connect(self) -> tuple[Any, Any]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
        paths = [str(_REPO), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**ONE_THREAD, "PYTHONPATH": os.pathsep.join(paths)}
        ours = {"num_cpus": self.cores, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
        try:
            self._ray.init(
                address=self._address,
                runtime_env={"env_vars": environment},
                log_to_driver=False,
                logging_level="ERROR",
                **(ours if self._address == "local" else {}),
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            words = " ".join(str(error).split())[:200]
            raise UserError(
                f"--address {self._address}: no Ray cluster can be used there ({words}); "
                "start one with `ray start --head`, or give --address local"
            ) from None
        self.cores = int(self._ray.cluster_resources().get("CPU", 1))
        remote = self._ray.remote(num_cpus=1, max_retries=_MAX_RETRIES)(_in_child)
        return remote, self._ray.put(self._function)

    def _result_of(self, reference: Any) -> Any:
        try:
            result = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return Failure("crashed", f"its Ray worker was lost ({type(error).__name__})")
        if isinstance(result, Trouble):
            raise UserError(result.message)
        return result


def _in_child(function: Callable[[Any], Any], task: Any, timeout_s: float) -> Any:
    """In a Ray worker: the task's result, Failure or Trouble, by a child process kept from task to task."""
    global _child
    if _child is None:
        _child = WorkerPool(function, 1, timeout_s)
    try:
        return next(result for _, result in _child.results([task]))
    except UserError as error:
        return Trouble(str(error))


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError(
            "--engine ray: the package ray isn't installed; run "
            ".venv/bin/pip install --no-deps -r requirements-ray.txt, or leave --engine out"
        ) from None
    return ray
