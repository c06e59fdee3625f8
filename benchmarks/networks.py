#!/usr/bin/env python3
"""The image networks: time per frame, time of a training step by part, and peak memory; Markdown tables.

    OMP_NUM_THREADS=1 python benchmarks/networks.py frames     # full with and without the kept identity, lite, upstream
    OMP_NUM_THREADS=1 python benchmarks/networks.py step       # a training step of lite (--preset full: of full)
    python benchmarks/networks.py frames --device cuda:0

Random weights and inputs of 256 x 256; loader.py tells of the data. Rows take turns in one run; times are medians of
CPU seconds (wall clock on a GPU), so that other work on the machine disturbs them little; ratios are to the first row.
Each row's peak memory is that of a process of its own (on a GPU: of its allocator), weights included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.discriminator import build_discriminators
from models.generator import FewShotGenerator
from models.generator_config import PRESETS
from models.losses import discriminator_losses, generator_losses
from models.perceptual import PerceptualFeatures
from models.train_step import detached
from models.upstream import UpstreamConfig, build_generator
from models.upstream.synthesiser import UpstreamSynthesiser
from options.groups import DiscriminatorFlags, LossFlags
from util.batch import FaceBatch, FrameInputs, References

SIZE = 256
Work = Callable[[], object]


def noise(*shape: int, device: str) -> torch.Tensor:
    return torch.rand(*shape, SIZE, SIZE, device=device)


def references(batch: int, k: int, device: str) -> References:
    return References(noise(batch, k, 3, device=device) * 2 - 1, noise(batch, k, 1, device=device))


def frame_inputs(batch: int, device: str) -> FrameInputs:
    draw = lambda c: noise(batch, c, device=device)  # noqa: E731
    return FrameInputs(draw(1), draw(3), draw(1), draw(2), draw(3), draw(1), draw(1))


def network(preset: str, device: str) -> FewShotGenerator:
    torch.manual_seed(0)
    return FewShotGenerator(PRESETS[preset]).to(device, memory_format=torch.channels_last)


def frame_rows(k: int, device: str) -> dict[str, Callable[[], Work]]:
    """Row to a function that makes what is timed: one frame."""

    def kept(preset: str) -> Work:
        generator = network(preset, device).eval()
        with torch.inference_mode():
            identity = generator.encode(references(1, k, device))
        inputs = frame_inputs(1, device)
        return lambda: generator.synthesise(identity, inputs)

    def again() -> Work:
        generator, shown = network("full", device).eval(), references(1, k, device)
        inputs = frame_inputs(1, device)
        return lambda: generator(shown, inputs)

    def upstream() -> Work:
        network = build_generator(UpstreamConfig(n_shot=k)).to(device).eval()
        synthesiser, inputs = UpstreamSynthesiser(network), frame_inputs(1, device)
        identity = synthesiser.encode(references(1, k, device))
        return lambda: synthesiser.synthesise(identity, inputs)

    return {
        "full, references encoded again for every frame": again,
        "full, identity kept": lambda: kept("full"),
        "lite, identity kept": lambda: kept("lite"),
        "upstream (the public network)": upstream,
    }


def face_batch(batch: int, k: int, device: str) -> FaceBatch:
    x, shown = frame_inputs(batch, device), references(batch, k, device)
    box = lambda *edges: torch.tensor(edges, dtype=torch.float32, device=device).expand(batch, 1, 4)  # noqa: E731
    return FaceBatch(
        tgt_image=noise(batch, 1, 3, device=device) * 2 - 1,
        tgt_sketch=x.sketch[:, None],
        ref_image=shown.image,
        ref_sketch=shown.sketch,
        warp_image=x.warp_image[:, None],
        warp_sketch=x.warp_sketch[:, None],
        face_box=box(60, 60, 200, 200),
        mouth_box=box(100, 150, 160, 210),
        template=(noise(batch, 1, 1, device=device) > 0.9).float(),
        warp_flow=x.warp_flow[:, None],
        ani_image=x.ani_image[:, None],
        ani_sketch=x.ani_sketch[:, None],
        ani_mask=x.ani_mask[:, None],
    )


class Step:
    """A training step of one network, part by part."""

    def __init__(self, preset: str, batch: int, k: int, device: str) -> None:
        self.generator, self.batch = network(preset, device), face_batch(batch, k, device)
        self.flags = LossFlags(flow_teacher="none", face_l1=10.0)
        self.critics = build_discriminators(DiscriminatorFlags(add_mouth_D=True)).to(device)
        self.perceptual = PerceptualFeatures().to(device, memory_format=torch.channels_last)

    def __call__(self, clock: Callable[[], float]) -> dict[str, float]:
        """Seconds of each part."""
        marks = [("", clock())]
        mark = lambda name: marks.append((name, clock()))  # noqa: E731
        self.critics.requires_grad_(False)
        identity = self.generator.encode(self.batch.references)
        mark("forward: references")
        made = self.generator.synthesise(identity, self.batch.frame(0))
        mark("forward: frame")
        losses = generator_losses(made, self.batch, 0, self.critics, self.perceptual, None, self.flags)
        mark("losses: perceptual network and critics")
        sum(losses.values()).backward()
        mark("backward")
        self.critics.requires_grad_(True)
        sum(discriminator_losses([detached(made)], self.batch, self.critics, self.flags).values()).backward()
        mark("critics' own step")
        self.generator.zero_grad(), self.critics.zero_grad()
        return {name: b - a for (_, a), (name, b) in pairwise(marks)}


def clock_of(device: str) -> Callable[[], float]:
    def gpu() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return gpu if device.startswith("cuda") else time.process_time


def peak_of(make: Callable[[], Work], device: str) -> float:
    """MB that a row's weights and work take at most, beyond what the imports take."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        make()()
        return torch.cuda.max_memory_allocated() / 1e6
    parent, child = multiprocessing.get_context("fork").Pipe(duplex=False)

    def run() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with torch.inference_mode():
            make()()
        child.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    megabytes = parent.recv()
    process.join()
    return megabytes


def frames(args: argparse.Namespace) -> None:
    clock, rows = clock_of(args.device), frame_rows(args.shots, args.device)
    peaks = {name: peak_of(make, args.device) for name, make in rows.items()}
    times: dict[str, list[float]] = {name: [] for name in rows}
    flops, work = {}, {name: make() for name, make in rows.items()}
    with torch.inference_mode():
        for name, run in work.items():
            with FlopCounterMode(display=False) as counter:
                run()
            flops[name] = counter.get_total_flops() / 1e9
        for _ in range(args.repeats):
            for name, run in work.items():
                start = clock()
                run()
                times[name].append(clock() - start)
    first = statistics.median(next(iter(times.values())))
    print(f"\n| one frame, {args.shots} references | GFLOP | ms | times faster | peak MB |\n|{' --- |' * 5}")
    for name, seconds in times.items():
        ms = statistics.median(seconds) * 1e3
        print(f"| {name} | {flops[name]:.1f} | {ms:.0f} | {first * 1e3 / ms:.2f} | {peaks[name]:.0f} |")


def step(args: argparse.Namespace) -> None:
    clock = clock_of(args.device)
    work = Step(args.preset, args.batch, args.shots, args.device)
    parts = [work(clock) for _ in range(args.repeats + 1)][1:]
    seconds = {name: statistics.median(p[name] for p in parts) for name in parts[0]}
    total = sum(seconds.values())
    print(f"\n| {args.preset}, batch {args.batch}, {args.shots} references | ms | share |\n|{' --- |' * 3}")
    for name, s in seconds.items():
        print(f"| {name} | {s * 1e3:.0f} | {s / total:.0%} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    if args.device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated() / 1e6
    print(f"| all | {total * 1e3:.0f} | peak {peak:.0f} MB |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("frames", "step"))
    parser.add_argument("--preset", choices=tuple(PRESETS), default="lite")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(1)
    {"frames": frames, "step": step}[args.part](args)


if __name__ == "__main__":
    main()
