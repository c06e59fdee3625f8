"""Quality of the shipped system on the pack, by the outside measure (../shared/tools/measure.py); prints tables.

    python benchmarks/quality.py voices|dev|emotions|motion|reenact [--out results/quality] [--limit N]

voices    every voice with three photos: sync, lag, identity, sharpness, flicker
dev       dev clips that talk, their own voice over their own first frame: lip opening against the true one
emotions  four emotions against neutral, same voice: which blendshapes rise, and whether sync stays; a contact sheet
motion    head motion by voice, seed, still and pose file
reenact   clips made from their own first frame: distance to the truth
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from options import parse_demo  # noqa: E402
from talking_head import make_video  # noqa: E402
from util.video import VideoWriter, read_frames, write_contact_sheet  # noqa: E402

SHARED = ROOT.parent / "shared"
PACK = SHARED / "pack" / "data"
PHOTOS = ("lp_s42.jpg", "eamm_7.png", "sadtalker_happy1.png")
EMOTIONS = {
    "happy": ("mouthSmileLeft", "mouthSmileRight"),
    "angry": ("browDownLeft", "browDownRight"),
    "sad": ("mouthFrownLeft", "mouthFrownRight", "browInnerUp"),
    "surprise": ("jawOpen", "eyeWideLeft", "eyeWideRight"),
}
SHEET = ("neutral", "happy", "sad", "angry", "fear", "disgust", "surprise")


def load_measure() -> ModuleType:
    """The outside measure, which is no part of this project."""
    spec = importlib.util.spec_from_file_location("measure", SHARED / "tools" / "measure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Bench:
    """Makes videos under one folder and measures them."""

    def __init__(self, out: Path) -> None:
        self.out, self.measure = out, load_measure()

    def video(self, name: str, **flags: object) -> Path:
        words = [w for k, v in flags.items() for w in ([f"--{k}"] if v is True else [f"--{k}", str(v)])]
        return make_video(parse_demo([*words, "--results_dir", str(self.out), "--name", name]))

    def figures(self, video: Path, ref: Path | None = None, gt: Path | None = None) -> dict:
        result, _ = self.measure.measure(str(video), ref and str(ref), gt and str(gt))
        return result

    def truth(self, clip: Path, name: str) -> Path:
        """The clip at 25 frames/s without loss worth naming, for the measure compares frame by frame."""
        path = self.out / name / "truth.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = read_frames(clip, "clip")
        first = next(frames)
        with VideoWriter(path, first.shape[1], first.shape[0]) as video:
            video.write(first)
            for frame in frames:
                video.write(frame)
        return path


def rows(**wanted: str) -> Iterator[dict[str, str]]:
    with (PACK / "manifest.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if all(row[k] == v for k, v in wanted.items()):
                yield row


def table(title: str, results: list[dict]) -> None:
    columns = list(results[0])
    print(f"\n{title}\n| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in results:
        print("| " + " | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    numbers = [c for c in columns if isinstance(results[0][c], float)]
    medians = {c: float(np.median([r[c] for r in results])) for c in numbers}
    print("medians: " + ", ".join(f"{c} {v:.3f}" for c, v in medians.items()), flush=True)


def voices(bench: Bench, limit: int) -> list[dict]:
    results = []
    for row in list(rows(kind="audio"))[:limit]:
        for photo in PHOTOS:
            path = PACK / "photos" / photo
            name = f"{row['id']}_{Path(photo).stem}"
            m = bench.figures(bench.video(name, ref_video_path=path, audio_path=PACK / row["path"]), ref=path)
            results.append(
                {
                    "voice": row["id"].removeprefix("voice_"),
                    "photo": photo,
                    "face": m["face_rate"],
                    "r_at_0": m.get("lip_r_at_0", float("nan")),
                    "lag_ms": float(m.get("lip_lag_ms", 0)),
                    "id": m["id_dist"]["median"],
                    "sharp": m["mouth_sharp"],
                    "flicker": m["flicker"],
                    "yaw_std": m["yaw"]["std"],
                    "pitch_std": m["pitch"]["std"],
                }
            )
    table("Voices with photos", results)
    return results


def dev(bench: Bench, limit: int) -> list[dict]:
    results = []
    for row in list(rows(kind="clip", split="dev", speaking="yes"))[:limit]:
        if row["sync_class"][0] not in "AB":
            continue
        clip = PACK / row["path"]
        video = bench.video(row["id"], ref_video_path=clip, audio_path=clip)
        m = bench.figures(video, gt=bench.truth(clip, row["id"]))
        kind = "grid" if row["identity"] == "grid_s1" else "arabic" if "clips_ar" in row["path"] else "other"
        r_at_0 = m.get("lip_r_at_0", float("nan"))
        results.append(
            {"set": kind, "clip": row["id"], "to_true": m.get("lip_r_to_true", 0.0), "r_at_0": r_at_0}
        )
    for kind in ("grid", "other", "arabic"):
        if some := [r for r in results if r["set"] == kind]:
            table(f"Dev clips with their own voice: {kind}", some)
    return results


def emotions(bench: Bench, limit: int) -> list[dict]:
    results, sheet, labels = [], [], []
    for photo in PHOTOS[:limit]:
        path = PACK / "photos" / photo
        base: dict = {}
        for emotion in SHEET:
            name = f"{emotion}_{Path(photo).stem}"
            voice = ROOT / "demo" / "voice.flac"
            video = bench.video(name, ref_video_path=path, audio_path=voice, emotion=emotion)
            frames = list(read_frames(video, "video"))
            sheet.append(frames[len(frames) // 2])
            labels.append(emotion)
            scores, sync = _blend(bench, frames), bench.figures(video)["lip_r_at_0"]
            if emotion == "neutral":
                base = {"scores": scores, "sync": sync}
            elif emotion in EMOTIONS:
                rise = max(scores[k] - base["scores"][k] for k in EMOTIONS[emotion])
                change = sync - base["sync"]
                results.append(
                    {"photo": photo, "emotion": emotion, "rise": float(rise), "sync_change": float(change)}
                )
    write_contact_sheet(bench.out / "emotions.png", sheet, len(SHEET), labels)
    table("Emotions against neutral", results)
    return results


def _blend(bench: Bench, frames: list[np.ndarray]) -> dict[str, float]:
    """Mean blendshape scores after the emotion has been eased in; the measure itself drops those below 0.1."""
    track = [t for t in bench.measure.Faces().track(frames, 25.0, 10**9)[20:] if t]
    return {k: float(np.mean([t["blend"][k] for t in track])) for k in track[0]["blend"]}


def motion(bench: Bench, limit: int) -> list[dict]:
    results = []
    poses = bench.out / "pose.csv"
    poses.parent.mkdir(parents=True, exist_ok=True)
    poses.write_text(
        "frame,yaw,pitch,roll\n0,0,0,0\n30,20,0,0\n50,20,0,0\n100,-20,0,0\n120,-20,0,0\n146,0,0,0\n"
    )
    wanted = np.interp(np.arange(147), [0, 30, 50, 100, 120, 146], [0, 20, 20, -20, -20, 0])
    for photo in PHOTOS[:limit]:
        path = PACK / "photos" / photo
        for name, flags in {
            "seed 0": {"seed": 0},
            "seed 1": {"seed": 1},
            "still": {"head_motion": "still"},
            "file": {"head_motion": poses},
        }.items():
            stem = f"{name.replace(' ', '')}_{path.stem}"
            video = bench.video(stem, ref_video_path=path, audio_path=ROOT / "demo" / "voice.flac", **flags)
            frames = list(read_frames(video, "video"))
            pose = np.array([t["pose"] for t in bench.measure.Faces().track(frames, 25.0, 10**9) if t])
            held = np.r_[30:50, 100:120]
            error = np.abs(pose[held, 0] - wanted[held]).mean() if name == "file" else float("nan")
            std = pose.std(0)
            results.append(
                {"photo": photo, "motion": name, "yaw_std": float(std[0]), "pitch_std": float(std[1])}
                | {"roll_std": float(std[2]), "held_yaw_error": float(error)}
            )
    table("Head motion (degrees)", results)
    return results


def reenact(bench: Bench, limit: int) -> list[dict]:
    results = []
    ids = ("mimictalk_german", "retalk_4", "grid_s1_bbaf2n", "grid_s1_bgbozp", "sadtalker_katiehill")
    for row in [r for r in rows(kind="clip") if r["id"] in ids][:limit]:
        clip = PACK / row["path"]
        video = bench.video(row["id"], tgt_video_path=clip, ref_video_path=clip, full_frame=True)
        m = bench.figures(video, gt=bench.truth(clip, row["id"]))
        names = ("lmk_nme", "mouth_nme", "psnr", "ssim", "lip_r_to_true")
        results.append({"clip": row["id"]} | {k: float(m[k]) for k in names})
    table("Clips from their own first frame (full frame)", results)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {f.__name__: f for f in (voices, dev, emotions, motion, reenact)}
    parser.add_argument("part", choices=parts)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "quality")
    parser.add_argument("--limit", type=int, default=10**6, help="at most this many clips, voices or photos")
    args = parser.parse_args()
    bench = Bench(args.out / args.part)
    results = parts[args.part](bench, args.limit)
    (bench.out / "figures.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
