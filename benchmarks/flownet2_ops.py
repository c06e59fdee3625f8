#!/usr/bin/env python3
"""FlowNet2's operations: ours against the plain way, taking turns in one run; a Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/flownet2_ops.py
    python benchmarks/flownet2_ops.py --size 256 --batch 4 --repeats 20

CPU: the correlation as a loop over its 441 displacements, and as our matrix product. CUDA GPU: PyTorch and Triton,
all three operations. Memory is the peak above the inputs; on the CPU of a process of its own, on Linux.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from third_party.flownet2 import torch_ops
from util.errors import UserError, run_script

SETTING = (20, 20, 2)  # pad, max displacement, stride of FlowNetC
CHANNELS = 256  # of the features that FlowNetC correlates
Operation = Callable[..., Tensor]


def looped_correlation(a: Tensor, b: Tensor, pad: int, reach: int, stride: int) -> Tensor:
    """One displacement after the other (pad equal to reach)."""
    height, width = a.shape[2:]
    b, shifts = F.pad(b, (pad,) * 4), range(0, 2 * reach + 1, stride)
    return torch.stack(
        [(a * b[:, :, y : y + height, x : x + width]).mean(1) for y in shifts for x in shifts], 1
    )


def inputs(name: str, batch: int, size: int, device: str) -> tuple[Tensor, ...]:
    """What FlowNet2 gives the operation for images of size x size."""
    torch.manual_seed(0)
    if name == "correlation":
        return tuple(torch.randn(2, batch, CHANNELS, size // 8, size // 8, device=device))
    image = torch.randn(batch, 3, size, size, device=device)
    return (image, 5 * torch.randn(batch, 2, size, size, device=device)) if name == "resample2d" else (image,)


def once(operation: Operation, args: tuple[Tensor, ...], name: str, backward: bool) -> None:
    args = tuple(x.detach().requires_grad_(backward) for x in args)
    out = operation(*args, *(SETTING if name == "correlation" else ()))
    if backward:
        torch.autograd.grad(out, args, out.detach())
    if out.is_cuda:
        torch.cuda.synchronize()


def peak_mb(operation: Operation, name: str, backward: bool, batch: int, size: int, device: str) -> float:
    """Memory above the inputs, of one call."""
    args = inputs(name, batch, size, device)
    if device == "cuda":
        once(operation, args, name, backward)  # kernels and libraries load themselves
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once(operation, args, name, backward)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    once(operation, tuple(x[:, :, :2, :2] for x in args), name, backward)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is this moment's memory now
    before = _peak_kb()
    once(operation, args, name, backward)
    return (_peak_kb() - before) / 1e3


def _peak_kb() -> int:
    """Largest memory of this process; getrusage would tell that of the process that started it, too."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def apart(*args: object) -> float:
    """`peak_mb` in a process of its own, whose allocator gives what is freed back to the system at once."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_mb, args)


def row(
    name: str, backward: bool, plain: Operation, ours: Operation, args: argparse.Namespace, device: str
) -> str:
    tensors, seconds = inputs(name, args.batch, args.size, device), ([], [])
    for turn in range(args.repeats + 1):
        for operation, times in zip((plain, ours), seconds, strict=True):
            start = time.perf_counter()
            once(operation, tensors, name, backward)
            if turn:  # the first is the warm-up
                times.append(1e3 * (time.perf_counter() - start))
    slow, fast = (statistics.median(times) for times in seconds)
    measure = peak_mb if device == "cuda" else apart
    peaks = [measure(o, name, backward, args.batch, args.size, device) for o in (plain, ours)]
    what = f"{name}, forward{' and backward' if backward else ''}"
    return f"| {what} | {slow:.2f} | {fast:.2f} | {slow / fast:.1f} | {peaks[0]:.0f} | {peaks[1]:.0f} |"


def head(plain: str, ours: str) -> str:
    return f"| | {plain}, ms | {ours}, ms | ratio | {plain}, peak MB | {ours}, peak MB |\n|---|---|---|---|---|---|"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--size", type=int, default=256, help="of the square images (default 256)")
    parser.add_argument("--batch", type=int, default=1, help="image pairs (default 1)")
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many is told (default 5)")
    args = parser.parse_args()
    if args.size < 64 or args.size % 64 or args.batch < 1 or args.repeats < 1:
        raise UserError("--size must be a multiple of 64, --batch and --repeats at least 1")
    print(f"CPU, {torch.get_num_threads()} threads, {args.batch} pairs of {args.size} x {args.size}\n")
    print(head("loop", "matrix product"))
    for backward in (False, True):
        print(row("correlation", backward, looped_correlation, torch_ops.correlation, args, "cpu"))
    if not torch.cuda.is_available() or find_spec("triton") is None:
        print("\nPyTorch against Triton: not measured, for want of a CUDA GPU with Triton.")
        return
    from third_party.flownet2 import triton_ops

    print(f"\n{torch.cuda.get_device_name()}\n\n{head('PyTorch', 'Triton')}")
    for name in ("correlation", "resample2d", "channel_norm"):
        for backward in (False, True):
            pair = (getattr(torch_ops, name), getattr(triton_ops, name))
            print(row(name, backward, *pair, args, "cuda"))


if __name__ == "__main__":
    run_script(main)
