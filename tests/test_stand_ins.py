"""Clips that cannot be read while training: the next sample stands in, counted over all reader processes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from data.clip_list import ListedRecords, clip_records
from data.contract import clip_paths
from data.face_fore_dataset import FaceForeDataset
from data.frame_choice import SamplePlan
from data.open_clips import ClipFolder
from data.stand_ins import StandIns
from util.batch import FaceBatch
from util.errors import UserError


def broken_folder(prepared: Path, root: Path, n_good: int, n_bad: int) -> ClipFolder:
    """Copies of the prepared clip; the videos of the bad ones are cut off."""
    record, made = clip_records(prepared)[0], []
    for k in range(n_good + n_bad):
        (root / "clips").mkdir(exist_ok=True)
        for old, new in zip(
            vars(clip_paths(prepared, record.id, "folder")).values(),
            vars(clip_paths(root, f"clips/{k}", "folder")).values(),
            strict=True,
        ):
            new.write_bytes(old.read_bytes())
        if k >= n_good:
            video = clip_paths(root, f"clips/{k}", "folder").video
            video.write_bytes(video.read_bytes()[:3000])
        made.append(replace(record, id=f"clips/{k}"))
    return ClipFolder(root, ListedRecords(made))


@pytest.mark.parametrize("n_workers", [0, 2])
def test_clips_that_fail_are_replaced_and_counted(
    prepared: Path, tmp_path: Path, n_workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    made = FaceForeDataset(broken_folder(prepared, tmp_path, 3, 2), SamplePlan(serial=True, geometry="none"))
    loader = DataLoader(made, 1, collate_fn=FaceBatch.stack, num_workers=n_workers)
    read = [batch.tgt_image[0] for batch in loader]
    assert len(read) == 5
    assert made.stand_ins.count == 3  # 3, then 4 in its stead, then 4 itself
    # Of two readers, either may be the first to meet one.
    assert re.search(r"[34]_crop\.mp4: is damaged or cut off", made.stand_ins.first_reason)
    assert torch.equal(read[3], read[0])  # the next that can be read
    made.stand_ins.tell()
    assert "3 samples could not be read, others stood in; the first: " in capfd.readouterr().err


def test_ten_failures_in_a_row_stop_it(prepared: Path, tmp_path: Path) -> None:
    made = FaceForeDataset(broken_folder(prepared, tmp_path, 1, 11), SamplePlan(serial=True, geometry="none"))
    assert made[0] is not None
    with pytest.raises(UserError, match=r"10 samples in a row can't be read; .*crop.mp4: is damaged"):
        made[1]
    assert made.stand_ins.count == 10


def test_stand_ins_say_nothing_where_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    stand_ins = StandIns()
    assert stand_ins.read(lambda k: k, 4, 5) == 4
    stand_ins.tell()
    assert capsys.readouterr().err == ""
