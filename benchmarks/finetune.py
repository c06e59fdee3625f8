"""What --finetune brings: dev clips re-made from their first frame, before and after fine-tuning on the first 64.

    python benchmarks/finetune.py                                       # the shipped generator, 20, 40 and 80 steps
    python benchmarks/finetune.py --weights FILE --clips 4 --steps 40 --rate 0.0002

Needs the pack of real clips beside the project. Fine-tuning sees frames 0, 2, ... 62 (--finetune_shot 32); compared
are --frames frames spread over the clip from frame 64 on, with the clip's own ones, as benchmarks/reenact.py does,
whose columns these are. Seconds are CPU time of fine-tuning on one thread, tracking of the first frames included.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from time import process_time

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from reenact import Clip, compare, dev_clips  # noqa: E402

from models.driving import Driving  # noqa: E402
from models.fewshot import SHIPPED, load_generator  # noqa: E402
from models.finetune import TuningPlan  # noqa: E402
from models.perceptual import PerceptualFeatures  # noqa: E402
from talking_head import TalkingHead  # noqa: E402
from util.checkpoints import checkpoint_path  # noqa: E402
from util.errors import UserError, run_script  # noqa: E402
from util.video import probe  # noqa: E402

SEEN = 64  # first frames, of which fine-tuning takes some
METRICS = ("psnr", "mouth_psnr", "ssim", "mobilenet", "seconds")


def excerpt(driving: Driving, frames: np.ndarray) -> Driving:
    """The motion of a copied clip in some of its frames."""
    copied = driving.copied.take(frames)
    return replace(
        driving,
        n_frames=len(frames),
        curve=copied.curve,
        copied=copied,
        closure=driving.closure[frames],
        gaze=driving.gaze[frames],
    )


def rows_of(
    path: Path, heads: dict[str, TalkingHead], plans: list[TuningPlan], n_frames: int, net: PerceptualFeatures
) -> dict[str, dict[str, float]]:
    """Row -> metrics of one clip. Raises UserError where it can't be used."""
    clip = Clip(path, heads["geometric"], SEEN + 200, 1)
    frames = np.unique(np.linspace(SEEN, len(clip.true) - 1, n_frames).astype(int))
    driving = excerpt(clip.driving, frames)
    all_heads, seconds = dict(heads), {}
    for plan in plans:
        name, start = f"{plan.steps} steps, rate {plan.rate:g}", process_time()
        all_heads[name] = heads["before"].finetuned(clip.options, clip.reference, plan)
        seconds[name] = process_time() - start
    rows = {}
    for name, head in all_heads.items():
        made = np.stack(list(head.animate(clip.reference, driving)))
        rows[name] = {**compare(made, clip.true[frames], net), "seconds": seconds.get(name, 0.0)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, help="a generator's file (default: the shipped one)")
    parser.add_argument("--clips", type=int, default=10**6, help="spread over the dev clips, at most")
    parser.add_argument("--frames", type=int, default=40, help="of each clip that are compared")
    parser.add_argument("--steps", default="20,40,80")
    parser.add_argument("--rate", default=str(TuningPlan.rate))
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = load_generator(args.weights or checkpoint_path(SHIPPED), "--weights")
    heads = {"geometric": TalkingHead(), "before": TalkingHead("cpu", network)}
    plans = [
        TuningPlan(int(steps), float(rate))
        for rate in args.rate.split(",")
        for steps in args.steps.split(",")
    ]
    net, results, n_done = PerceptualFeatures(), {}, 0
    paths = [p for p in dev_clips(10**6) if probe(p, "clip").n_frames >= SEEN + 10]
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(args.clips, len(paths))).round().astype(int))
    for path in tqdm([paths[k] for k in chosen], unit="clip"):
        try:
            rows = rows_of(path, heads, plans, args.frames, net)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        n_done += 1
        for name, row in rows.items():
            results.setdefault(name, []).append(row)
            print(f"{path.stem} {name}: " + " ".join(f"{m} {row[m]:.3f}" for m in METRICS), file=sys.stderr)
    print(f"\n| frames after the first {SEEN} ({n_done} clips) | " + " | ".join(METRICS) + " |")
    print("|" + " --- |" * (len(METRICS) + 1))
    for name, rows in results.items():
        print(f"| {name} | " + " | ".join(f"{np.mean([r[m] for r in rows]):.3f}" for m in METRICS) + " |")


if __name__ == "__main__":
    run_script(main)
