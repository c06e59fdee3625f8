"""Where each data set keeps its clips, as downloaded. A new one is one file and one line of LAYOUTS."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path

from data.contract import RawClip
from data.layouts.walk import Layout, read_folder, shown, sorted_folders
from util.errors import UserError

LAYOUTS = {  # looked up when asked for
    "vox": "data.layouts.voxceleb2",
    "lrs": "data.layouts.lrs3",
    "grid": "data.layouts.grid",
    "crema": "data.layouts.crema",
    "folder": "data.layouts.folder",
    "pack": "data.layouts.pack",
}
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz")
_MAX_SHOWN, _MAX_TRIED = 6, 50


def find_clips(dataset: str, root: str | Path) -> Iterator[RawClip]:
    """The clips of a data set below `root` (--dataroot), one by one; ids are unique and ascending.

    dataset: a key of LAYOUTS. No more than one folder (GRID: one speaker) is held in memory, so a million
    clips are no matter. Videos are not opened: whether they are whole shows when they are prepared.

    Raises UserError, at the call, where the data set or the folder is unknown or no clip is in its place.
    """
    layout, root = _layout(dataset), Path(root)
    if not root.is_dir():
        found = "is a file" if root.exists() else "no such folder"
        raise UserError(f"--dataroot {shown(root)}: {found}; {layout.needed} are needed; {layout.advice}")
    clips = layout.clips(root)
    first = next(clips, None)
    if first is None:
        raise UserError(_nothing_found(layout, root))
    return chain((first,), clips)


def _layout(dataset: str) -> Layout:
    if dataset not in LAYOUTS:
        raise UserError(f"--dataset_name {dataset}: unknown; choose one of {', '.join(LAYOUTS)}")
    return import_module(LAYOUTS[dataset]).LAYOUT


def _nothing_found(layout: Layout, root: Path) -> str:
    folder = read_folder(root)
    names = [
        *(f"folder {shown(Path(name))}" for name in sorted_folders(folder)),
        *(f"file {shown(Path(name))}" for name in sorted(folder.files)),
    ]
    found = ", ".join(names[:_MAX_SHOWN]) + (", ..." if len(names) > _MAX_SHOWN else "")
    advice = layout.advice
    near = [*(root / name for name in sorted_folders(folder)[:_MAX_TRIED]), root.absolute().parent]
    if layout.fixed and (there := next((p for p in near if next(layout.clips(p), None)), None)):
        advice = f"they are in {shown(there)}: give that"
    elif any(name.lower().endswith(_ARCHIVES) for name in folder.files):
        advice = f"unpack the archives first; {advice}"
    return f"--dataroot {shown(root)}: no {layout.needed} below it; found {found or 'nothing'}; {advice}"
