"""Self-reenactment: dev clips re-made from their own first frame by several generators, against the truth.

    python benchmarks/reenact.py                             # geometric and the shipped fewshot, all dev clips
    python benchmarks/reenact.py --runs lite,lite_temporal   # runs under checkpoints/
    python benchmarks/reenact.py --clips 12 --frames 60 --sheet results/reenact.png

Needs the pack of real clips beside the project. All generators make the same frames from the same tracking; they are
compared with the clip's own frames before any codec. Rows: copy (the reference, unmoved), geometric, and each run.
Columns, means over the clips' means: PSNR of the picture and of the mouth's square (dB), SSIM (as ../shared/tools/
measure.py has it), MobileNetV2 distance, flicker: mean |second difference over time| of made minus true frames (0-255;
0 where the frame moves as the truth does, so blur that stays put costs nothing).
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from face.crop import extract  # noqa: E402
from face.reference import Reference  # noqa: E402
from models.driving import Driving  # noqa: E402
from models.fewshot import SHIPPED, load_generator  # noqa: E402
from models.perceptual import PerceptualFeatures, feature_distance  # noqa: E402
from options import DemoOptions, parse_demo  # noqa: E402
from talking_head import TalkingHead  # noqa: E402
from util.checkpoints import checkpoint_path  # noqa: E402
from util.errors import UserError  # noqa: E402
from util.video import read_frames, write_contact_sheet  # noqa: E402

PACK = ROOT.parent / "shared" / "pack" / "data"
MOUTH = (
    0.36,
    0.72,
    0.64,
    0.92,
)  # left, top, right, bottom of the crop, where the contract's crop has the mouth
METRICS = ("psnr", "mouth_psnr", "ssim", "mobilenet", "flicker")


def dev_clips(n: int) -> list[Path]:
    """Curated dev clips: every talking or emotional one, GRID among them; no 1.2 s segments."""
    with (PACK / "manifest.csv").open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["kind"] == "clip" and r["split"] == "dev"]
    paths = [PACK / r["path"] for r in rows if "clips_ar" not in r["path"] and "raw_mead" not in r["path"]]
    return sorted(paths)[:n]


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """As the outside measure computes it: grey, Gaussian window of 11, sigma 1.5."""
    a, b = (cv2.cvtColor(x, cv2.COLOR_RGB2GRAY).astype(np.float64) for x in (a, b))
    blur = lambda x: cv2.GaussianBlur(x, (11, 11), 1.5)  # noqa: E731
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + 6.5025) * (2 * cov + 58.5225)
    return float((top / ((mean_a**2 + mean_b**2 + 6.5025) * (var_a + var_b + 58.5225))).mean())


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(float(((a.astype(np.float32) - b) ** 2).mean()), 1e-6)))


def compare(made: np.ndarray, true: np.ndarray, net: PerceptualFeatures) -> dict[str, float]:
    """made, true: (T, S, S, 3) uint8."""
    side = made.shape[1]
    x0, y0, x1, y1 = (int(v * side) for v in MOUTH)
    pairs = list(zip(made, true, strict=True))
    distance = []
    for first in range(0, len(made), 4):
        two = (torch.from_numpy(x[first : first + 4]).permute(0, 3, 1, 2) / 127.5 - 1 for x in (made, true))
        distance += feature_distance(*two, net).tolist()
    error = made.astype(np.float32) - true
    return {
        "psnr": float(np.mean([psnr(a, b) for a, b in pairs])),
        "mouth_psnr": float(np.mean([psnr(a[y0:y1, x0:x1], b[y0:y1, x0:x1]) for a, b in pairs])),
        "ssim": float(np.mean([ssim(a, b) for a, b in pairs])),
        "mobilenet": float(np.mean(distance)),
        "flicker": float(np.abs(np.diff(error, n=2, axis=0)).mean()),
    }


class Clip:
    """One dev clip: its reference, its motion, and its true frames in the reference's crop."""

    def __init__(self, path: Path, head: TalkingHead, n_frames: int, shots: int) -> None:
        self.name = path.stem
        frames = [str(round(k)) for k in np.linspace(0, 24, shots)] if shots > 1 else ["0"]
        words = [
            "--tgt_video_path",
            str(path),
            "--ref_video_path",
            str(path),
            "--ref_img_id",
            ",".join(frames),
        ]
        self.options: DemoOptions = parse_demo([*words, "--ref_ani_id", "0"])
        self.reference: Reference = head.reference(self.options)
        self.driving: Driving = head.driving(self.options, self.reference)
        n = min(n_frames, self.driving.n_frames)
        box = self.reference.ani.box
        self.true = np.stack(
            [extract(f, box, self.options.output.resolution) for f in islice(read_frames(path, "clip"), n)]
        )

    def made(self, head: TalkingHead) -> np.ndarray:
        return np.stack(list(islice(head.animate(self.reference, self.driving), len(self.true))))


def generators(runs: list[str]) -> Iterator[tuple[str, TalkingHead]]:
    """Name and pipeline of each row."""
    yield "geometric", TalkingHead()
    for run in runs:
        shipped = checkpoint_path(SHIPPED)
        path = shipped if run == "shipped" else checkpoint_path(f"{run}/latest_G.safetensors")
        yield run, TalkingHead("cpu", load_generator(path, "--runs"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", default="shipped", help="names under checkpoints/, with commas")
    parser.add_argument("--clips", type=int, default=10**6)
    parser.add_argument("--frames", type=int, default=100, help="of each clip, at most")
    parser.add_argument("--shots", type=int, default=1, help="references, spread over the first second")
    parser.add_argument("--sheet", type=Path, default=ROOT / "results" / "reenact.png")
    parser.add_argument("--per_clip", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    heads, net = dict(generators(args.runs.split(","))), PerceptualFeatures()
    results: dict[str, list[dict]] = {name: [] for name in ("copy", *heads)}
    sheet: list[np.ndarray] = []
    for path in tqdm(dev_clips(args.clips), unit="clip"):
        try:
            clip = Clip(path, heads["geometric"], args.frames, args.shots)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        made = {"copy": np.repeat(clip.true[:1], len(clip.true), 0)}
        made |= {name: clip.made(head) for name, head in heads.items()}
        for name, frames in made.items():
            results[name].append({"clip": clip.name, **compare(frames, clip.true, net)})
        worst = int(np.argmax(((made["copy"].astype(np.float32) - clip.true) ** 2).mean((1, 2, 3))))
        sheet += [clip.true[worst], *(frames[worst] for frames in made.values())]
    write_contact_sheet(args.sheet, sheet, 2 * (len(made) + 1))
    report(results, args.per_clip)


def report(results: dict[str, list[dict]], per_clip: bool) -> None:
    """Markdown tables on standard output."""
    print(f"\n| generator ({len(results['copy'])} clips) | " + " | ".join(METRICS) + " |")
    print("|" + " --- |" * (len(METRICS) + 1))
    for name, rows in results.items():
        means = [np.mean([r[m] for r in rows]) for m in METRICS]
        print(f"| {name} | " + " | ".join(f"{m:.4f}" for m in means) + " |")
    if per_clip:
        for name, rows in results.items():
            for r in rows:
                print(f"{name} {r['clip']} " + " ".join(f"{m} {r[m]:.3f}" for m in METRICS))


if __name__ == "__main__":
    main()
