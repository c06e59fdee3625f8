#!/usr/bin/env python3
"""Learn the template face and the expression basis from the pack's train clips.

    python scripts/learn_expression_basis.py --dataroot ../shared/pack/data --tracks cache/tracks

Writes checkpoints/expression_basis.safetensors, always the same bytes from the same tracks.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.pack import PackRow, face_clips, read_manifest
from data.tracks import clip_tracks, seen_only
from face.expression_basis import BASIS_FILE, MOUTH, ExpressionBasis, learn_basis, lip_gap
from face.pose import STABLE_POINTS, angles_deg, fit_pose, to_canonical
from face.tracker import FaceTrack
from util.checkpoints import checkpoint_path, save_tensors
from util.errors import UserError, run_script

MAX_YAW_DEG = 30.0  # beyond it the far half of the mesh is a guess
MIN_FRAMES = 10
LONG_CLIP = 600  # frames; longer clips give every third, so that they do not outweigh the others
N_COMPONENTS = 32
EVERY_SEGMENT, EVERY_GRID_S1 = 4, 6  # many clips of few people: one in so many
_FLIP = np.array([1.0, -1.0, -1.0], np.float32)


def chosen_rows(rows: list[PackRow], split: str) -> list[PackRow]:
    """The clips of a split, thinned so that no person dominates."""
    clips = face_clips(rows, split)
    segments = [r for r in clips if r.is_segment]
    grid = [r for r in clips if r.identity == "grid_s1"]
    others = [r for r in clips if not r.is_segment and r.identity != "grid_s1"]
    return others + grid[::EVERY_GRID_S1] + segments[::EVERY_SEGMENT]


def learn_template(tracks: list[FaceTrack]) -> np.ndarray:
    """Mean frontal face (478, 3) of clips, mirror-symmetric, outer-eye distance 1, by MediaPipe's own rotation."""
    means = []
    for track in tracks:
        turn = track.matrix[:, :3, :3] * _FLIP[:, None] * _FLIP
        turn = turn / np.cbrt(np.linalg.det(turn))[:, None, None]
        angles = angles_deg(turn)
        frontal = (np.abs(angles[:, 0]) < 15) & (np.abs(angles[:, 1]) < 20)
        if frontal.sum() < MIN_FRAMES:
            continue
        vertices, turn = track.vertices[frontal], turn[frontal]
        centred = vertices - vertices[:, STABLE_POINTS].mean(1, keepdims=True)
        face = np.einsum("tji,tnj->tni", turn, centred)
        means.append((face / np.linalg.norm(face[:, 33] - face[:, 263], axis=1).mean()).mean(0))
    template = np.mean(means, 0)
    mirrored = template * (-1, 1, 1)
    twin = ((template[:, None] - mirrored[None]) ** 2).sum(-1).argmin(1)
    template = (template + mirrored[twin]) / 2
    template /= np.linalg.norm(template[33] - template[263])
    return (template - template[STABLE_POINTS].mean(0)).astype(np.float32)


def frontal_only(tracks: list[FaceTrack], template: np.ndarray) -> list[FaceTrack]:
    """Drop the frames turned beyond MAX_YAW_DEG, then the clips with too few left."""
    kept = []
    for track in tracks:
        ok = np.abs(fit_pose(track.vertices, template).angles_deg[:, 0]) < MAX_YAW_DEG
        if ok.sum() >= MIN_FRAMES:
            kept.append(
                FaceTrack(track.vertices[ok], track.blendshapes[ok], track.matrix[ok], track.seen[ok])
            )
    return kept


def oriented(basis: ExpressionBasis) -> ExpressionBasis:
    """The same basis with every component's sign chosen so that it opens the lips: eigenvectors have no sign."""
    sign = np.where(lip_gap(basis.components) < 0, -1.0, 1.0).astype(np.float32)
    return replace(basis, components=basis.components * sign[:, None, None], projector=basis.projector * sign)


def explained(basis: ExpressionBasis, tracks: list[FaceTrack], points: np.ndarray | slice) -> float:
    """Share of the variance of unseen clips' meshes, at some points, that the basis can follow."""
    residual = total = 0.0
    for track in tracks:
        canonical = to_canonical(track.vertices, fit_pose(track.vertices, basis.template))
        offset = canonical - basis.neutral(canonical, track.blendshapes)
        error = offset - basis.offsets(basis.coefficients(offset))
        residual += float((error[:, points] ** 2).sum())
        total += float(((canonical - canonical.mean(0))[:, points] ** 2).sum())
    return 1 - residual / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--dataroot", type=Path, default=Path("../shared/pack/data"), help="folder of manifest.csv"
    )
    parser.add_argument(
        "--tracks", type=Path, default=Path("cache/tracks"), help="folder where face tracks are kept"
    )
    parser.add_argument("--out", type=Path, default=checkpoint_path(BASIS_FILE), help="the file to write")
    args = parser.parse_args()
    rows = read_manifest(args.dataroot)
    clips = {
        split: [
            seen_only(t, 3 if t.seen.sum() > LONG_CLIP else 1)
            for _, t in clip_tracks(chosen_rows(rows, split), args.tracks)
        ]
        for split in ("train", "dev")
    }
    if not clips["train"]:
        raise UserError(
            f"--dataroot {args.dataroot}: no train clip could be tracked; the whole pack is needed; copy it"
        )
    template = learn_template(clips["train"])
    train, dev = (frontal_only(clips[s], template) for s in ("train", "dev"))
    basis, info = learn_basis(train, template, N_COMPONENTS)
    basis = oriented(basis)
    save_tensors(
        args.out, {k: np.ascontiguousarray(v) for k, v in vars(basis).items()}, {"method": "ridge + PCA"}
    )
    print(
        f"{len(train)} train clips, {info['frames']} frames: blendshapes explain {info['blendshape_explained']:.3f}"
    )
    if dev:
        print(
            f"{len(dev)} dev clips: basis follows {explained(basis, dev, slice(0, 468)):.4f} of all points' variance"
        )
        print(f"  and {explained(basis, dev, MOUTH):.4f} of the mouth's")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    run_script(main)
