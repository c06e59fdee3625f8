"""The web page of a training: what the networks made of samples, newest first."""

from __future__ import annotations

import re
from pathlib import Path

import dominate
import numpy as np
from dominate import tags
from PIL import Image
from torch import Tensor

from util.batch import FaceBatch, Synthesis
from util.files import atomic_path

KEPT = 50  # entries
_MAX_REFERENCES = 4
_NAME = re.compile(r"epoch(\d+)_step(\d+)_(\d+)_(.+)\.png")


def sample_images(batch: FaceBatch, syn: Synthesis, t: int) -> dict[str, Tensor]:
    """By name, the first sample's pictures of target frame t: what went in, on the way, and out. CHW in [-1, 1]."""
    inputs = batch.frame(t)
    shown = {f"reference{k}": image for k, image in enumerate(batch.ref_image[0, :_MAX_REFERENCES])}
    shown |= {"target": batch.tgt_image[0, t], "sketch": inputs.sketch[0] * 2 - 1}
    if inputs.ani_image is not None:
        shown["ani"] = inputs.ani_image[0]
    shown |= {f"warped_{source}": image[0] for source, image in syn.warped.items()}
    shown |= {f"weight_{source}": weight[0] * 2 - 1 for source, weight in syn.weight.items()}
    if syn.raw is not None:
        shown["raw"] = syn.raw[0]
    if syn.ani_composed is not None:
        shown["ani_composed"] = syn.ani_composed[0]
    return shown | {"final": syn.image[0]}


class TrainingPage:
    """`index.html` of a folder and its pictures, which are all that it knows of entries made before."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.images = folder, folder / "images"

    def add(self, epoch: int, step: int, images: dict[str, Tensor]) -> None:
        """One more entry. Raises UserError where the folder is full or may not be written to."""
        for i, (name, image) in enumerate(images.items()):
            with atomic_path(self.images / f"epoch{epoch:04d}_step{step:08d}_{i:02d}_{name}.png") as part:
                _picture(image).save(part)
        self._write_index()

    def _write_index(self) -> None:
        entries: dict[tuple[int, int], list[tuple[str, Path]]] = {}
        for path in sorted(self.images.glob("*.png")):
            if found := _NAME.fullmatch(path.name):
                entries.setdefault((int(found[2]), int(found[1])), []).append((found[4], path))
        newest = sorted(entries, reverse=True)
        page = dominate.document(title=f"Training of {self.folder.parent.name}")
        with page:
            for step, epoch in newest[:KEPT]:
                tags.h3(f"epoch {epoch}, step {step}")
                with tags.div(style="display: flex; flex-wrap: wrap; gap: 8px"):
                    for name, path in entries[step, epoch]:
                        with tags.figure(style="margin: 0"):
                            tags.img(src=f"images/{path.name}", alt=name)
                            tags.figcaption(name)
        with atomic_path(self.folder / "index.html") as part:
            part.write_text(page.render(), encoding="utf-8")
        for entry in newest[KEPT:]:  # once no page shows them
            for _, path in entries[entry]:
                path.unlink(missing_ok=True)


def _picture(image: Tensor) -> Image.Image:
    levels = (image.detach().float().clamp(-1, 1) + 1) * 127.5
    pixels = levels.round().byte().cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(pixels.repeat(3, 2) if pixels.shape[2] == 1 else pixels))
