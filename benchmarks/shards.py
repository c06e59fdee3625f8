#!/usr/bin/env python3
"""How fast shards are written, read in place, and streamed by http through a cache that is smaller than the set.

    OMP_NUM_THREADS=1 python benchmarks/shards.py OUT              # OUT: a folder that scripts/preprocess.py has made
    OMP_NUM_THREADS=1 python benchmarks/shards.py OUT --copies 60  # each clip so many times, by hard links

Rates "and core" are by this process's CPU seconds; the server of the streaming is a process of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from data.clip_index import read_index
from data.contract import INDEX, SETTINGS
from data.shards import ShardSet, open_shards, write_shards
from data.shards.format import clip_members
from data.shards.scan import scan_shard
from util.errors import UserError, run_script

N_READS = 500


@contextmanager
def timed(what: str, n_bytes: int = 0) -> Iterator[None]:
    """Print the seconds of the block, and the rate if bytes are given."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    rate = f"  {n_bytes / 1e6 / wall:7.0f} MB/s by the clock, {n_bytes / 1e6 / cpu:.0f} MB/s and core"
    print(f"{what:44}{wall:8.3f} s{rate if n_bytes else ''}", flush=True)


def many(out: Path, target: Path, copies: int) -> int:
    """A prepared folder with each clip of `out` so many times; the number of clips."""
    records = []
    for k in range(copies):
        for old in read_index(out):
            new = replace(old, id=f"copy{k}/{old.id}", audio=old.audio and f"copy{k}/{old.audio}")
            new = replace(new, speaker=f"{old.speaker}-{k}", split="train")
            there, here = clip_members(out, old), clip_members(target, new)
            for name, path in here.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(there[name], path)
            records.append(new)
    if (out / SETTINGS).is_file():
        shutil.copyfile(out / SETTINGS, target / SETTINGS)
    (target / INDEX).write_text("".join(r.line() + "\n" for r in sorted(records, key=lambda r: r.id)))
    return len(records)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder on a web server; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "http.server",
        str(port),
        "--bind",
        "127.0.0.1",
        "--directory",
        str(folder),
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def read_all(clips: ShardSet, numbers: np.ndarray) -> int:
    """Every byte of these clips; how many."""
    return sum(len(place.read()) for k in numbers for place in clips.members(int(k)).values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", help="the prepared folder")
    parser.add_argument("--copies", type=int, default=60, help="of each clip")
    parser.add_argument("--shard_clips", type=int, default=100, help="clips per tar")
    args = parser.parse_args()
    out = Path(args.out).resolve()
    if args.copies < 1:
        raise UserError(f"--copies {args.copies}: 1 or more are needed")
    # Beside the clips: hard links don't reach another disk.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".shards-benchmark-") as work:
        prepared, shards = Path(work, "prepared"), Path(work, "shards")
        n = many(out, prepared, args.copies)
        total = sum(p.stat().st_size for p in prepared.rglob("*") if p.is_file())
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {n} clips, {total / 1e6:.0f} MB")
        with timed("write, until it is on the disk", total):
            paths = write_shards(prepared, shards, args.shard_clips)
            os.sync()
        with timed(f"write again: {len(paths)} shards are there"):
            write_shards(prepared, shards, args.shard_clips)
        with timed("open"):
            clips = open_shards(str(shards))
        picked = np.random.default_rng(0).integers(len(clips), size=N_READS)
        n_bytes = read_all(clips, picked)
        with timed(f"{N_READS} clips at random, all their bytes", n_bytes):
            read_all(clips, picked)
        with timed(f"headers of a tar of {paths[0].stat().st_size / 1e6:.0f} MB"):
            scan_shard(paths[0], "train")
        room = 3 * max(p.stat().st_size for p in paths)
        with served(shards) as url:
            time.sleep(1)
            streamed = open_shards(url, Path(work, "cache"), room)
            order = streamed.plan_epoch(np.arange(len(streamed)), 0, 1)
            with timed(f"stream through a cache of {room / 1e6:.0f} MB", total):
                read_all(streamed, order)


if __name__ == "__main__":
    run_script(main)
