#!/usr/bin/env python3
"""Prepare a raw data set for training; the same command goes on where it was stopped.

    python scripts/preprocess.py --dataset_name grid --dataroot /data/grid --out /data/grid_prepared

Exit status: 0 all clips are kept or closed a quality gate; 1 some were broken (unreadable, crashed, timeout: see
skipped.jsonl); 2 an error that the message tells how to mend; 130 stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from options import PreprocessOptions, parse_preprocess
from util.errors import remark, run_script

if TYPE_CHECKING:
    from data.contract import RawClip


def preprocess(options: PreprocessOptions) -> int:
    """Prepare the clips, then the shards where they are asked for; print the summary. Returns the exit status."""
    from tqdm import tqdm  # late, all of them: --help needs no torch, and a wrong folder is told of at once

    from data.contract import SKIPPED
    from data.layouts import find_clips

    work, root, out = options.work, Path(options.raw.dataroot).absolute(), Path(options.prepared.out)

    def clips() -> Iterator[RawClip]:
        return islice(find_clips(options.raw.dataset_name, root), options.raw.max_clips or None)

    n_clips = sum(1 for _ in tqdm(clips(), "looking for clips", unit="clip", leave=False, disable=None))

    from data.preprocessing.prepare_clip import ClipSettings, ClipTools
    from data.preprocessing.run import RunPlan, prepare_clips
    from data.shards import write_shards
    from models.ani_frames import clip_tools
    from models.stop_request import StopRequest

    settings = ClipSettings(**options.settings, gates=options.gates)
    with StopRequest() as stop:
        plan = RunPlan(
            n_processes=work.nThreads,
            engine=work.engine,
            address=work.address,
            timeout_s=work.timeout_s,
            retry_skipped=work.retry_skipped,
            n_clips=n_clips,
            stopping=lambda: stop.made,
        )
        summary = prepare_clips(clips(), out, root, settings, ClipTools(**clip_tools()), plan)
    print(summary.table())
    if summary.skipped:
        print(f"why, clip by clip: {out / SKIPPED}")
    if summary.run.stopped:
        remark("stopped; give the same command again to go on")
        return 130
    if options.shards.shards and summary.kept:
        write_shards(out, Path(options.shards.shards), options.shards.shard_clips)
    return 1 if summary.n_broken else 0


def main() -> None:
    """Parse, prepare, end with the status that says how it went."""
    options = parse_preprocess()
    if options.ready() and (status := preprocess(options)):
        raise SystemExit(status)


if __name__ == "__main__":
    run_script(main)
