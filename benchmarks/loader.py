#!/usr/bin/env python3
"""The training loader's samples per second beside one that decodes whole clips, and beside what training takes.

    OMP_NUM_THREADS=1 python benchmarks/loader.py                       # 3, 8 and 20 s; step of lite and full
    OMP_NUM_THREADS=1 python benchmarks/loader.py --clip FACE.mp4 --seconds 8 --no_step

A sample: 8 references and one target, 256 x 256, augmented, of a clip that was not open (as with a million clips). The
whole-clip loader makes the same samples from the same frames as H.264 with x264's default settings (a key frame
every 250), all of which it decodes with cv2.VideoCapture for every sample, and those of the 3D projection video with
`video`. One process, one thread; CPU seconds, medians over rounds in which the rows take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, wraps
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "threads;1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import cv2
import numpy as np
import torch

from data import face_sample, open_clips
from data.clip_list import ListedRecords
from data.contract import ClipPaths, ClipRecord, RawClip, clip_paths
from data.face_fore_dataset import FaceForeDataset
from data.frame_choice import SamplePlan
from data.open_clips import ClipFolder
from data.prepared_clip import ClipFiles, PreparedClip
from data.preprocessing.prepare_clip import ClipSettings, ClipTools, prepare_clip
from data.training_clips import MILD_GATES
from models.ani_frames import clip_tools
from models.geometry_stage import GeometryStage
from util.types import FPS
from util.video import VideoWriter, read_frames

REPO = Path(__file__).resolve().parents[1]
N_CLIPS = 12  # copies, so that the next sample is of another clip
GEOMETRIES = ("none", "video", "mesh")


def portrait_frames() -> Iterator[np.ndarray]:
    """The embedded portrait, moved about: one nod of four seconds."""
    picture = cv2.imread(str(REPO / "demo" / "portrait.png"))[..., ::-1]
    picture = cv2.resize(picture, (512, 512), interpolation=cv2.INTER_AREA)
    for k in range(4 * FPS):
        phase = 2 * np.pi * k / (4 * FPS)
        turn = cv2.getRotationMatrix2D((256, 256), 8 * np.sin(phase), 1 + 0.06 * np.cos(phase))
        yield cv2.warpAffine(picture, turn, (512, 512), borderMode=cv2.BORDER_REPLICATE)


def prepare(frames: Sequence[np.ndarray], n_frames: int, root: Path) -> ClipFolder:
    """A clip of so many frames, there and back, prepared, and N_CLIPS names for it."""
    cycle = [*frames, *frames[-2:0:-1]]
    raw = root / "raw" / "a.mp4"
    raw.parent.mkdir(parents=True)
    with VideoWriter(raw, frames[0].shape[1], frames[0].shape[0]) as video:
        for k in range(n_frames):
            video.write(cycle[k % len(cycle)])
    clip = RawClip("clips/0", raw, None, "", "folder", "a", "train")
    settings = ClipSettings(gates=MILD_GATES)
    record = prepare_clip(clip, root / "out", root, settings, ClipTools(**clip_tools()))
    if not isinstance(record, ClipRecord):
        raise SystemExit(f"the clip cannot be used: {record.detail}")
    for k in range(1, N_CLIPS):
        for old, new in zip(paths_of(root / "out", 0), paths_of(root / "out", k), strict=True):
            new.symlink_to(old)
    records = [replace(record, id=f"clips/{k}") for k in range(N_CLIPS)]
    return ClipFolder(root / "out", ListedRecords(records))


def paths_of(out: Path, k: int) -> list[Path]:
    paths: ClipPaths = clip_paths(out, f"clips/{k}", "folder")
    return list(vars(paths).values())


def write_h264(path: Path, frames: Sequence[np.ndarray]) -> None:
    """As ffmpeg and the public code's tools write it by default."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


class WholeVideo:
    """Frames of a video, all of which are decoded when the first is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def shown(self) -> list[np.ndarray]:
        capture, shown = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG), []
        while True:
            there, frame = capture.read()
            if not there:
                return shown
            shown.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))

    def __call__(self, frames: Sequence[int]) -> list[np.ndarray]:
        return [self.shown[k] for k in frames]


class WholeClips(open_clips.OpenClips):
    """Opens clips whose videos are decoded as a whole."""

    h264: Path

    def __getitem__(self, k: int) -> PreparedClip:
        clip = super().__getitem__(k)
        ani = WholeVideo(self.h264 / "ani.mp4") if clip.has_ani else None
        return replace(clip, _video=WholeVideo(self.h264 / "crop.mp4"), _ani=ani)


def loaders(folder: ClipFolder, h264: Path, geometry: str) -> dict[str, FaceForeDataset]:
    """Ours, and the one that decodes whole clips; neither keeps a clip, or what was made of it."""
    made = {}
    for name in ("ours", "whole"):
        plan = SamplePlan(n_shot=8, geometry=geometry, epoch_samples=1 << 20)
        dataset = FaceForeDataset(folder, plan, GeometryStage(capacity=0))
        kind = open_clips.OpenClips if name == "ours" else WholeClips
        dataset._clips = kind(folder, None, None, geometry == "video", limit=1)
        dataset._clips.h264 = h264
        made[name] = dataset
    return made


def measure(datasets: dict[str, FaceForeDataset], rounds: int, per_round: dict[str, int]) -> dict[str, float]:
    """CPU seconds per sample of each."""
    times: dict[str, list[float]] = {name: [] for name in datasets}
    at = 0
    for _ in range(rounds + 1):
        for name, dataset in datasets.items():
            start = time.process_time()
            for i in range(per_round[name]):
                dataset[at + i]
            times[name].append((time.process_time() - start) / per_round[name])
        at += max(per_round.values())
    return {name: statistics.median(t[1:]) for name, t in times.items()}


PARTS = {  # function -> where it is looked up, what it is called in the table
    "opening the clip: arrays, header": (PreparedClip, "open"),
    "pictures: read, decode": (PreparedClip, "pictures"),
    "3D projection video: read, decode": (PreparedClip, "ani_pictures"),
    "sketches": (face_sample, "sketch_maps"),
    "bytes to floats, light, mirror": (face_sample.Look, "of_bytes"),
    "boxes of eyes and mouth": (face_sample, "template_masks"),
    "3D face by the mesh": (face_sample, "staged"),
}


def profile(dataset: FaceForeDataset, n: int) -> dict[str, float]:
    """Milliseconds of a sample by part."""
    spent: dict[str, float] = defaultdict(float)
    inside = []  # of a part: others called by it count with it

    def timed(name: str, function: Callable) -> Callable:
        @wraps(function)
        def run(*args: object, **more: object) -> object:
            if inside:
                return function(*args, **more)
            inside.append(name)
            start = time.process_time()
            try:
                return function(*args, **more)
            finally:
                spent[name] += time.process_time() - start
                inside.pop()

        return run

    plain = {name: getattr(owner, function) for name, (owner, function) in PARTS.items()}
    for name, (owner, function) in PARTS.items():
        setattr(owner, function, timed(name, plain[name]))
    try:
        start = time.process_time()
        for i in range(n):
            dataset[i]
        whole = time.process_time() - start
    finally:
        for name, (owner, function) in PARTS.items():
            setattr(owner, function, plain[name])
    spent["all else"] = whole - sum(spent.values())
    return {name: s / n * 1e3 for name, s in spent.items()}


def step_seconds(preset: str, batch: int) -> float:
    """CPU seconds of a training step, by networks.py in a process of its own."""
    command = [sys.executable, str(REPO / "benchmarks" / "networks.py"), "step", "--preset", preset]
    command += ["--batch", str(batch), "--shots", "8", "--repeats", "2"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    row = next(line for line in said.splitlines() if line.startswith("| all |"))
    return float(row.split("|")[2]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip", help="a video of a face; default: the embedded portrait, moving")
    parser.add_argument("--seconds", default="3,8,20", help="lengths of clips")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no_step", action="store_true", help="leave the training step out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    frames = list(read_frames(args.clip, "--clip") if args.clip else portrait_frames())
    rates, parts = {}, {}
    print("| clip | geometry | ours, samples/s | whole clips | times as many |\n|---|---|---|---|---|")
    for seconds in map(float, args.seconds.split(",")):
        with tempfile.TemporaryDirectory() as work:
            folder = prepare(frames, round(seconds * FPS), Path(work))
            clip = PreparedClip.open(ClipFiles.of(clip_paths(folder.root, "clips/0", "folder")))
            everything = range(len(clip))
            write_h264(Path(work) / "crop.mp4", clip.images(everything))
            write_h264(Path(work) / "ani.mp4", clip.ani(everything))
            for geometry in GEOMETRIES:
                made = loaders(folder, Path(work), geometry)
                per_round = {"ours": 30, "whole": 4} if geometry != "mesh" else {"ours": 6, "whole": 3}
                took = measure(made, args.rounds, per_round)
                rates[geometry] = 1 / took["ours"]
                print(
                    f"| {seconds:g} s | {geometry} | {1 / took['ours']:.0f} | {1 / took['whole']:.2f} | "
                    f"{took['whole'] / took['ours']:.1f} |",
                    flush=True,
                )
                parts[geometry] = profile(made["ours"], 60 if geometry != "mesh" else 10)
    print(f"\n| ms of a sample ({seconds:g} s) | {' | '.join(GEOMETRIES)} |\n|---|---|---|---|")
    for name in [*PARTS, "all else"]:
        print(f"| {name} | {' | '.join(f'{parts[g].get(name, 0):.2f}' for g in GEOMETRIES)} |")
    if not args.no_step:
        print(
            "\n| training step on one core | samples/s it takes | loader processes that feed one |\n|---|---|---|"
        )
        for preset in ("lite", "full"):
            rate = 2 / step_seconds(preset, batch=2)
            need = ", ".join(f"{g} {rate / rates[g]:.3f}" for g in GEOMETRIES)
            print(f"| {preset} | {rate:.3f} | {need} |", flush=True)


if __name__ == "__main__":
    main()
