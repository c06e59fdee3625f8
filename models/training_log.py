"""What a training tells on its way: a progress bar, curves for TensorBoard, a page of samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from models.training_page import TrainingPage, sample_images
from models.training_state import Position
from util.batch import FaceBatch, Synthesis
from util.errors import UserError, remark


class TrainingLog:
    """Curves are written under `folder`/curves, the page to `folder`/web; neither stops a training if it fails."""

    def __init__(self, folder: Path, n_samples: int, at: Position, n_done: int, shown: bool = True) -> None:
        """n_samples, n_done: samples in all and done so far. shown: False is silent and writes nothing."""
        self.bar = tqdm(total=n_samples, initial=n_done, unit="sample", disable=not shown, desc="training")
        self.curves = SummaryWriter(str(folder / "curves"), purge_step=at.step + 1) if shown else None
        self.page = TrainingPage(folder / "web") if shown else None

    def step(self, at: Position, losses: Mapping[str, float], n_samples: int, n_skipped: int) -> None:
        """Tell of a step that is done and of its losses."""
        total = sum(v for name, v in losses.items() if not name.startswith("d_"))
        told = {"epoch": at.epoch, "loss": f"{total:.3f}"} | ({"skipped": n_skipped} if n_skipped else {})
        self.bar.set_postfix(told, refresh=False)
        self.bar.update(n_samples)
        if self.curves is None:
            return
        try:
            for name, value in losses.items():
                self.curves.add_scalar(f"loss/{name}", value, at.step)
        except OSError as error:
            self._give_up("curves", error)

    def sample(self, at: Position, batch: FaceBatch, made: list[Synthesis]) -> None:
        """Show the first sample's last frame on the page."""
        if self.page is None:
            return
        try:
            self.page.add(at.epoch, at.step, sample_images(batch, made[-1], len(made) - 1))
        except (OSError, UserError) as error:
            self._give_up("page", error)

    def close(self) -> None:
        self.bar.close()
        if self.curves is not None:
            try:
                self.curves.close()
            except OSError as error:
                self._give_up("curves", error)

    def _give_up(self, what: str, error: Exception) -> None:
        setattr(self, what, None)
        remark(f"the {what} of this training cannot be written ({error}); training goes on without")
