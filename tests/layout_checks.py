"""Checks that hold for the clips of every layout."""

from __future__ import annotations

from pathlib import Path

from data.contract import RawClip, clip_paths
from data.layouts import find_clips
from tests import raw_trees

TREES = {
    "grid": raw_trees.make_grid_tree,
    "crema": raw_trees.make_crema_tree,
    "vox": raw_trees.make_vox_tree,
    "lrs": raw_trees.make_lrs_tree,
    "folder": raw_trees.make_folder_tree,
}
_OUTPUTS = {
    dataset: [str(p).removeprefix("/") for p in vars(clip_paths("", "", dataset)).values()]
    for dataset in ("vox", "grid")
}


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def check_ids(clips: list[RawClip]) -> None:
    """Unique, ascending, and safe as paths; no file of one clip in the way of another's."""
    ids = [c.id for c in clips]
    assert ids == sorted(set(ids))
    suffixes = {c.dataset: _OUTPUTS["vox" if c.dataset == "vox" else "grid"] for c in clips}
    files = [c.id + suffix for c in clips for suffix in suffixes[c.dataset]] + [c.audio_id for c in clips]
    assert len(set(files)) == len(files)
    folders = {file.rsplit("/", n)[0] for file in files for n in range(1, file.count("/") + 1)}
    assert not folders & set(files)
    for part in {part for file in files for part in file.split("/")}:
        assert part
        assert part.isprintable()
        assert not part.startswith(".")
        assert len(part.encode()) <= 255


def by_id(dataset: str, root: Path) -> dict[str, RawClip]:
    """All clips of a data set, checked, by their id."""
    clips = list(find_clips(dataset, root))
    check_ids(clips)
    return {c.id: c for c in clips}
