#!/usr/bin/env python3
"""Frames per second and core of preparing clips, end to end, and where the time goes.

    OMP_NUM_THREADS=1 python benchmarks/preprocess.py --dataroot ../shared/pack/data/raw_grid/s1 --clips 16
    python benchmarks/preprocess.py --workers 1,2          # how it grows with processes, through data.preprocessing.run

The profile is taken in this process, pinned to one core, after one clip to warm up; every part's own time is taken
out of the parts around it. Aim: 60 frames per second and core on GRID, 1.8 times that with two processes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.contract import ClipRecord, RawClip, clip_paths
from data.preprocessing import prepare_clip as preparing
from data.preprocessing.prepare_clip import ClipSettings, ClipTools, prepare_clip
from models.ani_frames import clip_tools
from util.errors import UserError, run_script

VIDEOS = (".mpg", ".mp4", ".flv", ".avi", ".mov", ".mkv", ".webm")
PARTS = {  # name in the table: attributes of data.preprocessing.prepare_clip, or of classes in it, that belong to it
    "decode": ("ClipSource.__init__", "ClipSource.frames"),
    "track": ("FaceTracker.__init__", "FaceTracker.track", "FaceTracker.__exit__"),
    "gates": ("FrameWatch.add", "FrameWatch.check_seen", "check_track", "check_place", "check_lips"),
    "steady, fit, frontalise": ("_steady", "_in_crop", "frontalise", "join_observations"),
    "crop": ("extract", "extract_whole"),
    "encode": ("JpegWriter.write", "H264Writer.write"),
    "audio": ("read_sound", "write_wav"),
    "write": ("write_array", "write_tensors", "frame_bytes"),
}


class Profile:
    """Seconds by part; a part that runs inside another is taken out of it."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    def _switch(self) -> None:
        now = time.process_time()
        if self._open:
            self.spent[self._open[-1]] = self.spent.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the block's time to `name`."""
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed; of a generator every step is."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                result = function(*args, **kwargs)
            return self._stepped(name, result) if isinstance(result, Iterator) else result

        return call

    def _stepped(self, name: str, steps: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self.part(name):
                try:
                    value = next(steps)
                except StopIteration:
                    return
            yield value

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time the parts of `prepare_clip` while the block runs."""
        with ExitStack() as stack:
            for name, places in PARTS.items():
                for place in places:
                    owner, _, attribute = place.rpartition(".")
                    holder = getattr(preparing, owner) if owner else preparing
                    timed = self.timed(name, getattr(holder, attribute))
                    stack.enter_context(patch.object(holder, attribute, timed))
            yield


def clips_under(root: Path, n_clips: int) -> list[RawClip]:
    """The first videos of a folder as clips without further facts."""
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in VIDEOS)
    if not paths:
        raise UserError(f"--dataroot {root}: no clip in it; give a folder of clips")
    ids = [p.relative_to(root).with_suffix("").as_posix() for p in paths]
    return [
        RawClip(i, p, None, f"audio/{i}.wav", "grid", "", "train")
        for i, p in zip(ids[:n_clips], paths, strict=False)
    ]


def profile(clips: list[RawClip], root: Path, settings: ClipSettings) -> dict[str, Any]:
    """Prepare all but the first clip on one core and print the table; returns it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    functions, watch = clip_tools(), Profile()
    lips = watch.timed("voice to lips (gate)", functions["lip_gap"]) if functions["lip_gap"] else None
    tools = ClipTools(watch.timed("3D projection", functions["ani"]), lips)
    with tempfile.TemporaryDirectory() as out:
        prepare_clip(clips[0], Path(out), root, settings, tools)
        watch.spent.clear()
        wall, records = time.perf_counter(), []
        with watch.watching(), watch.part("the rest"):
            records = [prepare_clip(c, Path(out), root, settings, tools) for c in clips[1:]]
        wall = time.perf_counter() - wall
    kept = [r for r in records if isinstance(r, ClipRecord)]
    n = sum(r.frames for r in kept)
    if not n:
        raise UserError(f"--dataroot {root}: none of {len(records)} clips passed; {records[0].detail}")
    total = sum(watch.spent.values())
    print(f"{len(kept)} of {len(records)} clips kept, {n} frames, one core")
    print(f"{'part':28}{'ms/frame':>10}{'share':>8}")
    for name, seconds in sorted(watch.spent.items(), key=lambda item: -item[1]):
        print(f"{name:28}{1000 * seconds / n:10.2f}{seconds / total:8.1%}")
    print(f"{'all':28}{1000 * total / n:10.2f}{1:8.1%}")
    print(f"{n / total:.1f} frames/s and core of CPU time, {n / wall:.1f} by the clock (aim: 60)")
    parts = {name: 1000 * seconds / n for name, seconds in watch.spent.items()}
    return {"clips": len(kept), "frames": n, "ms_per_frame": parts, "fps": n / total, "fps_wall": n / wall}


def scaling(clips: list[RawClip], root: Path, settings: ClipSettings, workers: list[int]) -> dict[str, float]:
    """Frames per second by the clock with so many processes, once each of them has done its first clip."""
    from data.preprocessing.run import RunPlan, prepare_clips, read_index

    speeds = {}
    for n_workers in workers:
        with tempfile.TemporaryDirectory() as folder:
            out, plan = Path(folder), RunPlan(n_processes=n_workers, n_clips=len(clips))
            prepare_clips(clips, out, root, settings, ClipTools(**clip_tools()), plan)
            done = [
                (clip_paths(out, r.id, r.dataset).track.stat().st_mtime, r.frames) for r in read_index(out)
            ]
        done.sort()
        if len(done) <= 2 * n_workers:
            raise UserError(f"--clips {len(clips)}: too few for {n_workers} processes; take more")
        frames = sum(n for _, n in done[n_workers:])
        speeds[str(n_workers)] = speed = frames / (done[-1][0] - done[n_workers - 1][0])
        print(f"{n_workers} processes: {speed:6.1f} frames/s, {speed / speeds[str(workers[0])]:.2f} x")
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    pack = Path(__file__).resolve().parents[2] / "shared" / "pack" / "data"
    parser.add_argument("--dataroot", default=str(pack / "raw_grid" / "s1"), help="folder of clips")
    parser.add_argument("--clips", type=int, default=16, help="how many")
    parser.add_argument("--video", default="jpeg", choices=("jpeg", "h264"))
    parser.add_argument("--workers", default="", help="numbers of processes to compare, e.g. 1,2")
    parser.add_argument("--json", default="", help="write the numbers to this file too")
    args = parser.parse_args()
    root, settings = Path(args.dataroot), ClipSettings(video=args.video)
    if not root.is_dir():
        raise UserError(f"--dataroot {root}: no such folder; a folder of clips is needed")
    clips = clips_under(root, args.clips)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{platform.machine()}, {os.cpu_count()} cores; load {load:.1f}")
    if args.workers:
        result = {"workers": scaling(clips, root, settings, [int(n) for n in args.workers.split(",")])}
    else:
        result = profile(clips, root, settings)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
