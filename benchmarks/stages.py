#!/usr/bin/env python3
"""Frames per second of each stage, on this machine, one run each after a warm-up.

    python benchmarks/stages.py --threads 2 --seconds 10
    python benchmarks/stages.py --memory 60,600

Ratios are to real time: 1 is 25 frames per second. A stage that cannot run here is reported as missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch

from face.emotion import emotion_envelope, emotion_offset
from face.pose import apply_pose
from face.pose_file import PoseCurve
from face.reference import Reference, load_reference
from face.renderer import rasterize, sample_pixels
from face.rig import FaceRig
from face.tracker import FaceTracker
from models.blink import blinks, gaze
from models.driving import Driving
from models.expression import ExpressionLearner, ExpressionTrack
from models.geometric import FaceMotion, GeometricGenerator
from models.head_motion import HeadMotionLearner
from options.scripts import DemoOptions
from talking_head import CHUNK, TalkingHead, _pose, make_video
from util.audio import read_voice, write_wav
from util.errors import UserError, run_script
from util.types import FPS, SAMPLE_RATE, Voice
from util.video import VideoWriter, read_frames

DEMO = Path(__file__).resolve().parents[1] / "demo"
MAX_TRACKED = 100  # frames: tracking is slow enough to be measured on few
WARM_SECONDS = 1.0  # of voice, before a learner is timed


@dataclass(frozen=True)
class Stage:
    """One row of the table."""

    name: str
    frames: int = 0
    seconds: float = 0.0  # wall time
    cpu_seconds: float = 0.0  # of all threads: says what a stage costs on a machine that others use too
    note: str = ""

    @property
    def fps(self) -> float | None:
        """Frames per second; None where the stage could not run."""
        return self.frames / self.seconds if self.frames else None


class Clock:
    """Wall and CPU seconds by name."""

    def __init__(self) -> None:
        self._spent: dict[str, tuple[float, float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the block's time to what `name` has taken so far."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        before = self._spent.get(name, (0.0, 0.0))
        now = time.perf_counter() - wall, time.process_time() - cpu
        self._spent[name] = before[0] + now[0], before[1] + now[1]

    def stage(self, name: str, frames: int, note: str = "") -> Stage:
        """The row of what `name` took for so many frames."""
        return Stage(name, frames, *self._spent[name], note)


def limit_cores(n_threads: int) -> None:
    """Use this many cores, and as many threads in the libraries."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n_threads])
    torch.set_num_threads(n_threads)
    cv2.setNumThreads(n_threads)


def repeated_voice(path: Path, seconds: float) -> Voice:
    """The voice of a file, repeated until it lasts this long."""
    samples = read_voice(path, "--audio_path").samples
    return Voice(np.resize(samples, round(seconds * SAMPLE_RATE)))


class Benchmark:
    """The stages on one reference and one voice."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.head = TalkingHead(args.device)
        start = time.perf_counter()
        photo = Path(args.ref_video_path)
        self.reference = load_reference(photo, (0,), None, args.resolution, self.head.basis)
        self.start_up = time.perf_counter() - start
        self.voice = repeated_voice(Path(args.audio_path), args.seconds)
        self.warm_voice = repeated_voice(Path(args.audio_path), WARM_SECONDS)

    def run(self) -> list[Stage]:
        """All rows. What isn't there yet is reported as missing."""
        rows: list[Stage] = []
        steps = {
            "tracking": self.tracking,
            "expression learner": self.expression,
            "head motion": self.head_motion,
            "generator": self.rig_and_generator,
            "end to end": self.end_to_end,
        }
        for name, step in steps.items():
            try:
                rows += step()
            except UserError as error:
                rows.append(Stage(name, note=f"missing: {error}"[:100]))
        return rows

    def tracking(self) -> list[Stage]:
        """MediaPipe on a clip, or on the portrait sliding by a pixel a frame; decoding not counted."""
        frames = list(self._frames_to_track())
        clock = Clock()
        with FaceTracker() as tracker:
            tracker.track(frames[0])
            with clock("tracking"):
                seen = sum(tracker.track(f) is not None for f in frames)
        size = f"{frames[0].shape[1]} x {frames[0].shape[0]} px, face seen in {seen} of {len(frames)}"
        return [clock.stage("tracking", len(frames), size)]

    def _frames_to_track(self) -> Iterator[np.ndarray]:
        if self.args.tgt_video_path:
            yield from islice(read_frames(self.args.tgt_video_path, "--tgt_video_path"), MAX_TRACKED)
        else:
            for k in range(MAX_TRACKED):
                yield np.roll(self.reference.source, k % 20 - 10, axis=1)

    def expression(self) -> list[Stage]:
        """Voice to coefficients and lip opening."""
        learner = ExpressionLearner.load(self.args.device)
        learner.predict(self.warm_voice)
        clock = Clock()
        with clock("expression learner"):
            learner.predict(self.voice)
        return [clock.stage("expression learner", self.voice.n_frames)]

    def head_motion(self) -> list[Stage]:
        """Voice to head motion, and blinks and gaze."""
        learner = HeadMotionLearner.load(self.args.device)
        learner.sample(self.warm_voice, 0, 1.0)
        clock, n = Clock(), self.voice.n_frames
        with clock("head motion"):
            learner.sample(self.voice, 0, 1.0)
        with clock("blinks and gaze"):
            blinks(n, 0, self.voice)
            gaze(n, 0)
        return [clock.stage("head motion", n), clock.stage("blinks and gaze", n)]

    def rig_and_generator(self) -> list[Stage]:
        """The rig's maths, the generator as a whole and in parts, and the encoder, on the same motion."""
        driving = moving(self.reference, self.voice, self.head.basis.n_components)
        generator = GeometricGenerator(self.reference.ani, self.head.basis, None, self.args.device)
        self._generate(generator, driving, Clock(), 2 * CHUNK)  # warm-up
        clock, n = Clock(), driving.n_frames
        frames = self._generate(generator, driving, clock, n)
        self._encode(frames, clock, n)
        apart = ("  of which rasterise", "  of which head field", "  of which sampling")
        at_a_time = f"{self.args.resolution} px, {CHUNK} frames at a time"
        return [
            clock.stage("rig and driving maths", n),
            clock.stage("geometric generator", n, at_a_time),
            *(clock.stage(name, n, "measured apart") for name in apart),
            clock.stage("to bytes", n),
            clock.stage("encoding", n, "H.264 and AAC"),
        ]

    def _generate(
        self, generator: GeometricGenerator, driving: Driving, clock: Clock, n_frames: int
    ) -> list[np.ndarray]:
        """Frames as `TalkingHead.animate` makes them, timed part by part; every eighth chunk is kept."""
        ani, kept = self.reference.ani, []
        rig = FaceRig(ani.canonical, ani.blendshapes, self.head.basis, self.reference.neutral)
        emotion = emotion_offset(self.head.basis, "happy")
        for first in range(0, n_frames, CHUNK):
            part = slice(first, min(first + CHUNK, n_frames))
            with clock("rig and driving maths"):
                strength = emotion_envelope(part.stop - first, 0.5, first)
                speech = driving.speech
                meshes = rig.speak(speech.coefficients[part], speech.lip_gap[part], emotion, strength)
                meshes = rig.blink(meshes, driving.closure[part])
                motion = FaceMotion(meshes, _pose(ani.pose, driving, part), driving.gaze[part])
            with clock("geometric generator"):
                image = generator(motion).image
                self._wait()
            with clock("to bytes"):
                frames = image.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            self._parts(generator, motion, clock)
            if not kept or first % (8 * CHUNK) == 0:
                kept += [np.ascontiguousarray(f) for f in frames]
        return kept

    def _parts(self, generator: GeometricGenerator, motion: FaceMotion, clock: Clock) -> None:
        """The generator's main steps once more, alone."""
        pose, size = motion.pose, self.args.resolution
        vertices = generator._tensor(apply_pose(motion.canonical, pose))
        arrays = pose.rotation, pose.scale, pose.translation
        with torch.inference_mode():
            with clock("  of which rasterise"):
                rasterize(vertices, generator._triangles, size, size)
                self._wait()
            with clock("  of which head field"):
                tensors = (generator._tensor(a) for a in arrays)
                source = generator._field.backward_flow(*tensors, vertices, vertices)
                self._wait()
            with clock("  of which sampling"):
                sample_pixels(generator._picture, source)
                self._wait()

    def _wait(self) -> None:
        """Until the GPU is done."""
        if self.args.device != "cpu":
            torch.cuda.synchronize()

    def _encode(self, frames: list[np.ndarray], clock: Clock, n: int) -> None:
        size = self.args.resolution
        with (
            tempfile.TemporaryDirectory() as folder,
            clock("encoding"),
            VideoWriter(Path(folder) / "out.mp4", size, size, voice=self.voice) as video,
        ):
            for k in range(n):
                video.write(frames[k % len(frames)])

    def end_to_end(self) -> list[Stage]:
        """From voice and portrait to the finished file, reading both; libraries and weights are warm."""
        with tempfile.TemporaryDirectory() as folder:
            clock = Clock()
            for name, voice in (("warm-up", self.warm_voice), ("end to end", self.voice)):
                path = Path(folder) / f"{name}.wav"
                write_wav(path, voice)
                with clock(name):
                    make_video(demo_options(self.args, path, folder), self.head)
        return [clock.stage("end to end", self.voice.n_frames, "make_video, reference included")]


def moving(reference: Reference, voice: Voice, n_components: int) -> Driving:
    """Lively motion without a learner: the generator's work hardly depends on what the face says."""
    n = voice.n_frames
    t = np.arange(n, dtype=np.float32)[:, None] / FPS
    swing = np.concatenate([8 * np.sin(1.3 * t), 4 * np.sin(1.9 * t), 3 * np.sin(0.7 * t)], 1)
    angles = (reference.ani.pose.angles_deg + swing).astype(np.float32)
    curve = PoseCurve(angles, (0.03 * np.sin(t * [1.0, 1.7])).astype(np.float32), np.zeros(n, np.float32))
    gaps = (0.08 * (1 + np.sin(9 * t[:, 0]))).astype(np.float32)
    coefficients = np.random.default_rng(0).normal(0, 0.5, (n, n_components)).astype(np.float32)
    speech = ExpressionTrack(coefficients, gaps)
    looks = (0.002 * gaze(n, 0)).astype(np.float32)
    return Driving(n, voice, curve, speech, None, blinks(n, 0, voice), looks, "happy", 0.5, False)


def demo_options(args: argparse.Namespace, voice: str | Path, folder: str) -> DemoOptions:
    """Options of a demo run with this voice and its results in `folder`."""
    flags = {"ref_video_path": args.ref_video_path, "audio_path": voice, "results_dir": folder}
    flags |= {"resolution": args.resolution, "gpu_ids": -1 if args.device == "cpu" else 0}
    return DemoOptions.parse([str(word) for name, value in flags.items() for word in (f"--{name}", value)])


def print_peak(args: argparse.Namespace) -> None:
    """Make a video of --audio_path in this process and print the largest memory it took in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        make_video(demo_options(args, args.audio_path, folder), TalkingHead(args.device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak / (2**20 if sys.platform == "darwin" else 2**10))


def memory(args: argparse.Namespace) -> dict[str, float]:
    """Peak memory in MiB of a voice of each length in seconds, each in a process of its own."""
    peaks = {}
    for seconds in args.memory.split(","):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "voice.wav"
            write_wav(path, repeated_voice(Path(args.audio_path), float(seconds)))
            command = [sys.executable, __file__, "--peak", "--audio_path", str(path)]
            for name in ("ref_video_path", "resolution", "device", "threads"):
                command += [f"--{name}", str(getattr(args, name))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"--memory {seconds}: " + (done.stderr.strip().splitlines() or ["failed"])[-1])
        peaks[seconds] = float(done.stdout.strip().splitlines()[-1])
        print(f"{float(seconds):8.0f} s of voice: peak memory {peaks[seconds]:7.0f} MiB", flush=True)
    mib = list(peaks.values())
    print(f"ratio of the last to the first: {mib[-1] / mib[0]:.3f} (aim: at most 1.10)")
    return peaks


def report(rows: list[Stage], bench: Benchmark, args: argparse.Namespace) -> dict[str, object]:
    """Print the table; returns it as what --json writes."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} used, {args.device}"
    print(f"{machine}; load {load:.1f}; {args.seconds:g} s of voice; one run")
    print(f"reading and tracking the reference: {bench.start_up:.2f} s, once, model start included")
    print(f"{'stage':24}{'frames/s':>10}{'ms/frame':>10}{'CPU ms':>10}{'x real time':>13}  note")
    for row in rows:
        if row.fps is None:
            print(f"{row.name:24}{'-':>10}{'-':>10}{'-':>10}{'-':>13}  {row.note}")
            continue
        cpu = 1000 * row.cpu_seconds / row.frames
        times = f"{row.fps:10.1f}{1000 / row.fps:10.2f}{cpu:10.2f}{row.fps / FPS:13.2f}"
        print(f"{row.name:24}{times}  {row.note}")
    stages = [asdict(r) | {"fps": r.fps, "real_time": r.fps and r.fps / FPS} for r in rows]
    facts = {"machine": machine, "load": load, "voice_seconds": args.seconds, "resolution": args.resolution}
    return facts | {"reference_seconds": bench.start_up, "stages": stages}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--ref_video_path", default=str(DEMO / "portrait.png"), help="photo or clip to show")
    parser.add_argument("--audio_path", default=str(DEMO / "voice.flac"), help="voice, repeated as needed")
    parser.add_argument("--tgt_video_path", default="", help="clip to track (default: the sliding portrait)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the voice")
    parser.add_argument("--resolution", type=int, default=256, help="side of the square video in pixels")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0")
    parser.add_argument(
        "--threads", type=int, default=min(2, os.cpu_count() or 1), help="CPU cores and threads"
    )
    parser.add_argument("--json", default="", help="write the figures here too")
    parser.add_argument("--memory", default="", help="instead: peak memory of voices this long, e.g. 60,600")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)  # the child of --memory
    args = parser.parse_args()
    if args.threads < 1 or args.seconds < 1:
        raise UserError("--threads and --seconds: at least 1 is needed")
    return args


def main() -> None:
    """Run what the flags ask for."""
    args = parse()
    limit_cores(args.threads)
    if args.peak:
        print_peak(args)
        return
    if args.memory:
        figures: dict[str, object] = {"peak_mib": memory(args)}
    else:
        bench = Benchmark(args)
        figures = report(bench.run(), bench, args)
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
