"""What both readers of prepared clips share: opening them, their 3D face, what stands in for damaged ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from data.face_sample import GeometryStage
from data.open_clips import OpenClips, PreparedClips
from data.prepared_clip import PreparedClip
from data.stand_ins import MAX_DAMAGED, StandIns
from util.batch import FaceBatch
from util.errors import UserError


class ClipSamples(Dataset):
    """FaceBatch samples without batch axis. A subclass gives `__len__`, `order` and `_sample`.

    A sample whose clip cannot be read is the one after it instead; `stand_ins` counts them.
    """

    def __init__(
        self,
        source: PreparedClips,
        geometry: str,
        stage: GeometryStage | None,
        size: int | None,
        cache: Path | None,
    ) -> None:
        """geometry: "mesh" (needs `stage`), "video" or "none". size: of the pictures; None: as they were prepared.

        cache: folder for copies of videos in which frames cannot be found quickly.
        """
        self.source, self.geometry, self._stage = source, geometry, stage
        self._clips = OpenClips(source, size, cache, with_ani=geometry == "video")
        self.stand_ins = StandIns()

    @property
    def has_flow(self) -> bool:
        """Whether samples have `warp_flow`."""
        return self.geometry == "mesh"

    @property
    def has_ani(self) -> bool:
        """Whether samples have `ani_image`, its sketch and its mask."""
        return self.geometry != "none"

    def report(self) -> None:
        """Say how often a sample could not be read and another stood in."""
        self.stand_ins.tell()

    def order(self) -> np.ndarray | None:
        """The order in which this epoch's samples are read cheaply; None: any will do."""
        return None

    def __getitem__(self, index: int) -> FaceBatch:
        """Sample `index`, on the CPU. Raises IndexError behind the last, UserError as `StandIns.read`."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        self.order()  # where shards are fetched, those that come next
        return self.stand_ins.read(self._sample, index, len(self))

    def _sample(self, index: int) -> FaceBatch:
        raise NotImplementedError


def clips_geometry(source: PreparedClips, wanted: str, staged: bool) -> str:
    """ "mesh", "video" or "none": what the first clip that is there has, as far as it is wanted."""
    if wanted == "none":
        return wanted
    for k in range(min(len(source.records), MAX_DAMAGED)):
        try:
            files = source.files(k)
        except UserError:
            continue
        if wanted == "mesh" and staged and files.track:
            return "mesh"
        return "video" if files.ani else "none"
    return "none"


def check_mesh(*clips: PreparedClip) -> None:
    """Raise UserError for a clip without a track of ours."""
    for clip in clips:
        if not clip.has_mesh:
            raise UserError(f"{clip.files.video}: has no track of ours, as other clips do; prepare it again")
