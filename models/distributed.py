"""Training on several GPUs or machines: who is who, agreement between processes, and starting them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import IO, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from util.errors import UserError

T = TypeVar("T")
_PATIENCE = timedelta(days=2)  # others wait while one prepares the clips of a large data set


@dataclass(frozen=True)
class World:
    """The processes that train together. One alone: rank 0 of 1."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local: int = 0  # rank among this machine's

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes; all get the same numbers, and NaN where one has it."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def one_before_the_others(self, make: Callable[[], T]) -> T:
        """What `make` gives in each process; the first of each machine makes it first, as files come of it."""
        if self.local == 0:
            made = make()
        self.agree(0)  # waits for all
        if self.local:
            made = make()
        return made

    def agree(self, number: int) -> bool:
        """Whether all processes have the same number."""
        if self.size == 1:
            return True
        ends = torch.tensor([number, -number], device=self.device)
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        return bool(ends.sum() == 0)

    def wrap(self, module: nn.Module, some_idle: bool = False) -> nn.Module:
        """The module whose gradients are averaged over the processes.

        some_idle: whether there are steps in which some parameters have no part.
        """
        if self.size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, find_unused_parameters=some_idle)


def is_launched() -> bool:
    """Whether torchrun, or `launch`, started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def join_world(gpu_ids: Sequence[int], device: str) -> World:
    """Meet the other processes, if there are any.

    gpu_ids: of --gpu_ids, empty for all. device: where a process alone trains; "cpu" takes all to the CPU.
    Raises UserError where the machine lacks a GPU that this process should use.
    """
    if not is_launched():
        return World(torch.device(device))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local = int(os.environ.get("LOCAL_RANK", rank))
    chosen = torch.device("cpu")
    if not device.startswith("cpu"):
        ids, there = list(gpu_ids) or list(range(torch.cuda.device_count())), torch.cuda.device_count()
        if local >= len(ids) or ids[local] >= there:
            raise UserError(
                f"--gpu_ids {','.join(map(str, ids))}: process {local} has no GPU of its own "
                f"({there} there); start one process per GPU"
            )
        chosen = torch.device("cuda", ids[local])
        torch.cuda.set_device(chosen)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=_PATIENCE)
    return World(chosen, rank, size, local)


def share_out(gpu_ids: Sequence[int], command: Sequence[str]) -> None:
    """Start `command`, a script and its flags, once per GPU where --gpu_ids names several, and end with its status.

    Returns where there is nothing to share out: one GPU, a process that is shared out already, or no GPU at all.
    Raises UserError for a GPU that isn't there.
    """
    there = torch.cuda.device_count()
    if len(gpu_ids) < 2 or is_launched() or not there:
        return
    if max(gpu_ids) >= there:
        raise UserError(
            f"--gpu_ids {','.join(map(str, gpu_ids))}: this machine has {there} GPU(s); choose 0 to {there - 1}"
        )
    raise SystemExit(launch(len(gpu_ids), command))


def leave_world() -> None:
    """Part from the other processes."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def launch(n_processes: int, command: Sequence[str]) -> int:
    """Run a command as several processes of one world, as torchrun does; returns the worst exit status.

    When one fails, the others are stopped. Ctrl-C and SIGTERM reach all of them. What processes other than the first
    say on stderr shows only where the first has no fault: it is the same error otherwise.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs = [None, *(tempfile.TemporaryFile("w+") for _ in range(n_processes - 1))]  # noqa: SIM115 (outlive it)
    workers = []
    for rank, log in enumerate(logs):
        env = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n_processes)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        workers.append(subprocess.Popen([sys.executable, *command], env=env, stderr=log))
    before = {s: signal.signal(s, lambda number, _: _pass_on(workers, number)) for s in _SIGNALS}
    try:
        return _watch(workers, logs)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _pass_on(workers, signal.SIGKILL)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ALONE_S, _GRACE_S = (
    5.0,
    30.0,
)  # after one has failed, until the others are asked to stop, and until they are killed


def _pass_on(workers: Sequence[subprocess.Popen], number: int) -> None:
    for worker in workers:
        if number != signal.SIGINT and worker.poll() is None:  # Ctrl-C: the terminal has sent it to all
            worker.send_signal(number)


def _watch(workers: Sequence[subprocess.Popen], logs: Sequence[IO[str] | None]) -> int:
    failed_at, asked = None, False
    while any(worker.poll() is None for worker in workers):
        time.sleep(0.1)
        if failed_at is None and any(worker.poll() for worker in workers):
            failed_at = time.monotonic()
        waited = 0.0 if failed_at is None else time.monotonic() - failed_at
        if waited > _ALONE_S and not asked:
            _pass_on(workers, signal.SIGTERM)
            asked = True
        if waited > _GRACE_S:
            _pass_on(workers, signal.SIGKILL)
    codes = [worker.returncode for worker in workers]
    if codes[0] <= 0:
        for log, code in zip(logs[1:], codes[1:], strict=True):
            if code > 0:
                log.seek(0)
                sys.stderr.write(log.read())
    worst = next((code for code in codes if code > 0), min(codes))
    return worst if worst >= 0 else 128 - worst
