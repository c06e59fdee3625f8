"""Each data set from its true layout and codecs to ten steps of training, by the two commands' own functions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

import models.train_images
import train
from data.clip_index import read_index
from data.contract import clip_paths
from data.prepared_clip import ClipFiles, PreparedClip
from options import parse_preprocess, parse_train
from scripts.preprocess import preprocess
from tests import raw_trees
from tests.tiny_training import FLAGS

N_CLIPS = 3
# What the public loaders look for: ../shared/parity/rhm/README.md, section 8.
FIRST_VIDEO = {
    "grid": "align/s1/*_crop.mp4",
    "crema": "VideoFlash/1001_*_crop.mp4",
    "vox": "unzip/dev_video/id*/*/*_aligned.mp4",
    "lrs": "test/*/*_crop.mp4",
}
TREES: dict[str, Callable[..., list[Path]]] = {
    "grid": raw_trees.make_grid_tree,
    "crema": raw_trees.make_crema_tree,
    "vox": raw_trees.make_vox_tree,
    "lrs": raw_trees.make_lrs_tree,
}


@pytest.mark.parametrize("name", TREES)
def test_from_download_to_training(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, out, run = tmp_path / "raw", tmp_path / "out", tmp_path / "run"
    TREES[name](raw, n=N_CLIPS)
    # A portrait's lips that are moved by a sine wave fit no voice.
    argv = f"--dataset_name {name} --dataroot {raw} --out {out} --nThreads 0 --max_lip_lag_ms 0".split()
    assert preprocess(parse_preprocess(argv)) == 0
    records = read_index(out)
    assert len(records) == N_CLIPS
    assert {r.split for r in records} == {"train", "test"}
    assert list(out.glob(FIRST_VIDEO[name]))
    for record in records:
        assert (out / record.audio).stat().st_size > 16_000
        clip = PreparedClip.open(ClipFiles.of(clip_paths(out, record.id, name)))
        assert len(clip) == record.frames >= 24

    monkeypatch.setattr(models.train_images, "checkpoint_path", lambda _: run)
    more = f"--dataset_name {name} --dataroot {out} --epoch_samples 20 --niter 1 --flow_teacher mesh".split()
    assert train.train(parse_train([*FLAGS, *more])) == run / "latest_G.safetensors"
    with safe_open(run / "training.safetensors", "pt") as state:
        note = json.loads(state.metadata()["note"])
    assert (note["step"], note["epoch"]) == (10, 2)  # the next epoch's
