"""The options of scripts/preprocess.py. What a clip must be like to be kept (`QualityGates`) is defined here alone."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from os.path import isdir
from pathlib import Path
from typing import Any, ClassVar

from options.base import ScriptOptions
from options.flags import Flags, flag
from util.errors import UserError, remark

RAW_DATASETS = ("grid", "crema", "vox", "lrs", "folder", "pack")
CROPS = ("static", "moving")
VIDEOS = ("jpeg", "h264")
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class DryRunFlags(Flags):
    """The run. Exit status: 0; 1 where clips were broken (unreadable, crashed, timeout); 2 error; 130 stopped."""

    dry_run: bool = flag(False, "print the resolved options as JSON and stop")


@dataclass(frozen=True)
class RawFlags(Flags):
    """The raw clips, as they were downloaded: docs/data.md."""

    dataset_name: str | None = flag(
        None, "file layout under --dataroot; folder: any clips", kind="str", choices=RAW_DATASETS
    )
    dataroot: str = flag("", "the raw data set's folder; nothing is written there")
    max_clips: int = flag(0, "only the first so many clips, for a try (0: all)", low=0)


@dataclass(frozen=True)
class PreparedFlags(Flags):
    """The prepared clips."""

    out: str = flag("", "folder for the prepared clips; one that an earlier run began is gone on with")
    size: int = flag(256, "side of the square crop in pixels", low=64, high=1024, multiple=32)
    crop: str = flag("static", "the crop stands still in a clip, or follows the face", choices=CROPS)
    video: str = flag(
        "jpeg", "pictures: jpeg is read fast at any frame, h264 is two fifths of the size", choices=VIDEOS
    )
    jpeg_quality: int = flag(92, "quality of the pictures of --video jpeg", low=50, high=100)


@dataclass(frozen=True)
class WorkFlags(Flags):
    """How the work is done: changes nothing in the result."""

    nThreads: int | None = flag(
        None, "processes (default: one per core); 0 works in this one", kind="int", low=0, high=1024
    )
    timeout_s: float = flag(1800.0, "seconds that a clip may take (0: no limit)", low=0.0)
    retry_skipped: bool = flag(False, "try clips again that an earlier run left out")
    engine: str = flag("local", "processes here, or tasks of a Ray cluster: docs/scale.md", choices=ENGINES)
    address: str = flag(
        "auto", "with --engine ray: local (starts one here), auto (finds the one that runs), or HOST:PORT"
    )


@dataclass(frozen=True)
class ShardFlags(Flags):
    """Shards, for training from few large files."""

    shards: str = flag("", "folder for WebDataset tars of all kept clips, written at the end")
    shard_clips: int = flag(100, "clips per tar", low=1)


@dataclass(frozen=True)
class QualityGates(Flags):
    """What a clip must be like to be kept."""

    min_frames: int = flag(20, "fewest frames at 25 per second (0: any)", low=0)
    min_fps: float = flag(10.0, "lowest frame rate of the source (0: any)", low=0.0)
    max_damaged: int = flag(
        0, "damaged parts of a file that are put up with, left out of the clip (-1: any number)", low=-1
    )
    min_sound: float = flag(
        0.8,
        "smallest part of the clip with sound of its own (0: clips without sound are kept)",
        low=0.0,
        high=1.0,
    )
    min_seen: float = flag(
        0.8, "smallest part of the frames in which a face is seen (0: one frame)", low=0.0, high=1.0
    )
    min_face_px: float = flag(60.0, "smallest median width of the face in source pixels (0: any)", low=0.0)
    min_brightness: float = flag(30.0, "darkest face, mean luma 0 to 255 (0: any)", low=0.0, high=255.0)
    max_brightness: float = flag(235.0, "brightest face, mean luma (255: any)", low=0.0, high=255.0)
    max_second_face: float = flag(
        0.2,
        "largest part of the frames with a second face of half the size or more (1: any)",
        low=0.0,
        high=1.0,
    )
    max_cuts: int = flag(0, "most scene cuts within a clip (-1: any number)", low=-1)
    max_yaw: float = flag(45.0, "largest median turn to the side in degrees (180: any)", low=0.0, high=180.0)
    max_pitch: float = flag(40.0, "largest median nod in degrees (180: any)", low=0.0, high=180.0)
    max_outside: float = flag(
        0.1,
        "largest part of the frames in which the face is not wholly in the crop (1: any)",
        low=0.0,
        high=1.0,
    )
    max_lip_lag_ms: float = flag(
        120.0,
        "largest lag between voice and lips in milliseconds, where it is sure (0: not looked at)",
        low=0.0,
    )


@dataclass(frozen=True)
class PreprocessOptions(ScriptOptions):
    """Prepare a data set for training: every raw clip becomes a face crop, landmarks, pose, 3D image and voice."""

    SCRIPT: ClassVar[str] = "scripts/preprocess.py"
    experiment: DryRunFlags = field(default_factory=DryRunFlags)  # no name, GPU or checkpoint is needed
    raw: RawFlags = field(default_factory=RawFlags)
    prepared: PreparedFlags = field(default_factory=PreparedFlags)
    gates: QualityGates = field(default_factory=QualityGates)
    work: WorkFlags = field(default_factory=WorkFlags)
    shards: ShardFlags = field(default_factory=ShardFlags)

    @classmethod
    def resolve(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {"nThreads": n_cores(), **given}

    def validate(self) -> None:
        low, high = self.gates.min_brightness, self.gates.max_brightness
        if low > high:
            raise UserError(f"--min_brightness {low}: is above --max_brightness {high}; no face could pass")
        if self.work.engine == "ray" and self.work.nThreads == 0:
            raise UserError("--nThreads 0: Ray needs processes; give 1 or more, or leave --engine ray out")

    def check_ready(self) -> None:
        if not self.raw.dataset_name:
            raise UserError(f"--dataset_name: not given; give one of {', '.join(RAW_DATASETS)}")
        if not self.raw.dataroot:
            raise UserError("--dataroot: not given; give the folder of the raw data set")
        if not isdir(self.raw.dataroot):
            raise UserError(f"--dataroot {self.raw.dataroot}: no such folder; give that of the raw data set")
        if not self.prepared.out:
            raise UserError("--out: not given; give a new folder for the prepared clips")
        out = Path(self.prepared.out).resolve()
        if self.shards.shards and Path(self.shards.shards).resolve().is_relative_to(out):
            raise UserError(f"--shards {self.shards.shards}: lies in --out; give a folder of its own")

    def remarks(self, given: dict[str, Any]) -> None:
        idle = {
            "address": self.work.engine != "ray",
            "shard_clips": not self.shards.shards,
            "jpeg_quality": self.prepared.video != "jpeg",
        }
        needed = {"address": "--engine ray", "shard_clips": "--shards", "jpeg_quality": "--video jpeg"}
        for name in idle:
            if name in given and idle[name]:
                remark(f"--{name} changes nothing without {needed[name]}")

    @property
    def settings(self) -> dict[str, Any]:
        """Flag to value of all that changes a prepared clip, gates apart: fields of ClipSettings."""
        return {f.name: getattr(self.prepared, f.name) for f in fields(self.prepared) if f.name != "out"}


def n_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
