"""Which prepared clips there are: by the index of scripts/preprocess.py, by walking over a folder that the public code
filled, or by a list file. Names: ../shared/parity/rhm/README.md, section 8, "Files".

No clip is opened for it; a million lines of the index take half a minute.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.byte_range import ByteRange
from data.clip_index import parsed_lines
from data.contract import INDEX, ClipRecord, clip_paths
from data.layouts.crema import LAST_TRAIN_ACTOR
from data.layouts.folder import MIN_SPEAKERS, in_test
from data.layouts.grid import TEST_SPEAKERS
from data.prepared_clip import ClipFiles
from util.errors import UserError, remark

_ARRAYS = {
    "_aligned.mp4": ("_aligned.npy", "_aligned_rt.npy", "_aligned_front.npy"),
    "_crop.mp4": ("_original.npy", "_rt.npy", "_front.npy"),
}
_CLIP_SUFFIXES = tuple(_ARRAYS)
_HEADER_THREADS = 8  # a network disk answers many questions at a time
_LISTED_SUFFIXES = ("_front.npy", "_crop.mp4", ".mp4", ".flv")
_PICKLES = (".pkl", ".pickle")
# Folders that tell of the split; in a public LRS tree everything is in `test`, which then tells nothing.
_TEST_FOLDERS = {"vox": ("test_video", "test"), "lrs": ("test",)}
_VOX_FOLDERS = ("unzip/dev_video", "unzip/test_video")


class ClipRecords(Sequence[ClipRecord]):
    """Records of N clips, made when asked for, and what choosing among them takes, as columns."""

    frames: np.ndarray  # (N,) int64 T of each; 0 where the clip cannot be read
    runs: np.ndarray  # (N,) int64 most frames in a row that show the face, as far as it is known
    speakers: np.ndarray  # (N,) int64 a number for each speaker


class ListedRecords(ClipRecords):
    """Records that are in memory already."""

    def __init__(self, records: Iterable[ClipRecord]) -> None:
        self._records = list(records)
        self.frames = np.array([r.frames for r in self._records], np.int64)
        self.runs = np.array([r.longest_run for r in self._records], np.int64)
        self.speakers = numbered(r.speaker for r in self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, k: int) -> ClipRecord:
        return self._records[k]


class IndexRecords(ClipRecords):
    """The clips of one split in OUT/clips.jsonl: 32 bytes of memory each, their lines are read when asked for."""

    def __init__(
        self, path: Path, train: bool, free_only: bool = False, ids: Container[str] | None = None
    ) -> None:
        """ids: the only clips that are taken, if given. Raises UserError where a line is damaged."""
        self._path = path
        columns, speakers = [], []
        for offset, values in parsed_lines(path):
            wanted = (values["split"] == "train") == train and (ids is None or values["id"] in ids)
            if wanted and not (free_only and values["redistributable"] == "no"):
                columns.append((offset, values["frames"], values["longest_run"]))
                speakers.append(values["speaker"])
        self._offsets, self.frames, self.runs = np.array(columns, np.int64).reshape(-1, 3).T
        self.speakers = numbered(speakers)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, k: int) -> ClipRecord:
        if not -len(self) <= k < len(self):
            raise IndexError(k)
        try:
            with self._path.open("rb") as file:
                file.seek(int(self._offsets[k]))
                return ClipRecord.from_dict(json.loads(file.readline()))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self._path}: was changed or cannot be read ({error}); start again") from None


class FoundClip(NamedTuple):
    """A clip without a record."""

    id: str
    dataset: str
    speaker: str
    split: str
    key_frame: int = -1  # not told


class FoundRecords(ClipRecords):
    """Clips that were found by their names; their lengths are read from the landmarks' headers when asked for."""

    def __init__(self, root: Path, clips: Sequence[FoundClip]) -> None:
        self._root, self._clips = root, clips
        self.speakers = numbered(c.speaker for c in clips)

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, k: int) -> ClipRecord:
        c, n = self._clips[k], int(self.frames[k])
        return ClipRecord(c.id, c.dataset, c.speaker, c.split, n, n, c.key_frame, "", "", 0, 25.0)

    @cached_property
    def frames(self) -> np.ndarray:
        with ThreadPoolExecutor(_HEADER_THREADS) as pool:
            lengths = list(pool.map(self._length, self._clips, chunksize=64))
        faults = [f for f in lengths if isinstance(f, str)]
        if faults:
            remark(f"{len(faults)} clips are left out; the first: {faults[0]}")
        return np.array([0 if isinstance(n, str) else n for n in lengths], np.int64)

    @property
    def runs(self) -> np.ndarray:
        return self.frames

    def _length(self, clip: FoundClip) -> int | str:
        try:
            paths = clip_paths(self._root, clip.id, clip.dataset)
            return ClipFiles(*[ByteRange.whole(paths.landmarks)] * 4).n_frames
        except UserError as error:
            return str(error)


def clip_records(
    root: str | Path,
    dataset_name: str = "folder",
    split: str = "train",
    free_only: bool = False,
    clip_list: str = "",
    ids: Container[str] | None = None,
) -> ClipRecords:
    """The prepared clips under `root`: those to train on, or, for any other split, those left out of that.

    dataset_name: whose names are looked for where there is no index; "folder": all of them. free_only leaves out
    what the index says may not be redistributed. clip_list: a .json or .csv file with the clips' entries as the
    public code's lists have them; they are taken for any split. ids: the only clips of an index that are taken, if
    given. Empty where there is no prepared clip.
    Raises UserError for a list or an index that cannot be used.
    """
    root, train = Path(root), split == "train"
    if clip_list:
        return FoundRecords(root, _listed(root, dataset_name, Path(clip_list), train))
    if (root / INDEX).is_file():
        return IndexRecords(root / INDEX, train, free_only, ids)
    found = list(_walked(root, dataset_name))
    if not _tells_splits(found):
        found = _split_by_speaker(found)
    return FoundRecords(root, [c for c in found if (c.split == "train") == train])


def is_prepared(root: str | Path, dataset_name: str = "folder") -> bool:
    """Whether there is an index, or at least one clip by the contract's names, under `root`."""
    return (Path(root) / INDEX).is_file() or next(_walked(Path(root), dataset_name), None) is not None


def prepared_videos(
    root: str | Path, dataset_name: str = "folder", clip_list: str = ""
) -> Iterator[tuple[Path, Path | None]]:
    """Video and sound file of every prepared clip under `root`: first those left out of training, then the others."""
    for split in ("test",) if clip_list else ("test", "train"):
        records = clip_records(root, dataset_name, split, clip_list=clip_list)
        for k in range(len(records)):
            record = records[k]
            yield clip_paths(root, record.id, record.dataset).video, audio_of(root, record)


def audio_of(root: str | Path, record: ClipRecord) -> Path | None:
    """The sound file of a prepared clip; None where there is none."""
    root, name = Path(root), record.id
    tries = [record.audio] if record.audio else []
    tries += [name.replace("_video/", "_audio/", 1) + ".m4a"]  # vox
    tries += [f"audio/{name.removeprefix('align/')}.wav", f"AudioWAV/{Path(name).name}.wav"]  # grid, crema
    return next((root / t for t in tries if (root / t).is_file()), None)


def numbered(names: Iterable[str]) -> np.ndarray:
    """(N,) int64: equal names have equal numbers."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names], np.int64)


def _walked(root: Path, dataset: str) -> Iterator[FoundClip]:
    """Clips whose arrays lie beside them, sorted by folder and name."""
    suffixes = {"vox": _CLIP_SUFFIXES[:1], "folder": _CLIP_SUFFIXES}.get(dataset, _CLIP_SUFFIXES[1:])
    for folder, below, names in os.walk(root):
        below[:] = sorted(n for n in below if not n.startswith("."))
        there = set(names)
        for name in sorted(names):
            suffix = next((s for s in suffixes if name.endswith(s)), None)
            if not suffix:
                continue
            stem = name.removesuffix(suffix)
            if all(stem + array in there for array in _ARRAYS[suffix]):
                yield _found(Path(folder, stem).relative_to(root).as_posix(), _kind(dataset, suffix))


def _kind(dataset: str, suffix: str) -> str:
    """The data set that says how a clip's files are called."""
    if dataset != "folder":
        return dataset
    return "vox" if suffix == _CLIP_SUFFIXES[0] else "folder"


def _found(id_: str, dataset: str, key_frame: int = -1) -> FoundClip:
    parts = id_.split("/")
    split = "train"
    if any(p in _TEST_FOLDERS.get(dataset, ()) for p in parts[:-1]):
        split = "test"
    return FoundClip(id_, dataset, _speaker(parts, dataset), split, key_frame)


def _tells_splits(clips: Sequence[FoundClip]) -> bool:
    """Whether the folders tell of the split; of LRS clips that are all in `test`, as the public code's, they don't."""
    return all(c.dataset == "vox" for c in clips) or len({c.split for c in clips}) > 1


def _split_by_speaker(clips: Sequence[FoundClip]) -> list[FoundClip]:
    """The same with whole speakers left out of training, those that data/layouts leaves out."""
    many = len({c.speaker for c in clips}) >= MIN_SPEAKERS

    def left_out(clip: FoundClip) -> bool:
        if clip.dataset == "grid":
            return clip.speaker in TEST_SPEAKERS
        if clip.dataset == "crema" and clip.speaker.isascii() and clip.speaker.isdigit():
            return int(clip.speaker) > LAST_TRAIN_ACTOR
        return many and in_test(clip.speaker)

    return [c._replace(split="test" if left_out(c) else "train") for c in clips]


def _speaker(parts: Sequence[str], dataset: str) -> str:
    """Whoever is to be in one split only: crema: the name's first part; vox: the folder above the video's."""
    if dataset == "crema":
        return parts[-1].split("_")[0]
    return parts[max(len(parts) - (3 if dataset == "vox" else 2), 0)]


def _listed(root: Path, dataset: str, path: Path, train: bool) -> list[FoundClip]:
    if path.suffix.lower() in _PICKLES:
        raise UserError(
            f"--clip_list {path}: a pickle can run code and is never opened; if you trust it, convert it: python -c "
            f"\"import pickle, json; json.dump(pickle.load(open({path.name!r}, 'rb')), open('clips.json', 'w'))\""
        )
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = json.load(file) if path.suffix.lower() == ".json" else list(csv.reader(file))
        entries = [[str(v) for v in row] if isinstance(row, list) else [str(row)] for row in rows]
    except (OSError, ValueError, TypeError, csv.Error, RecursionError) as error:
        raise UserError(
            f"--clip_list {path}: cannot be read ({error}); a .json or .csv list is needed"
        ) from None
    made = [_entry(root, dataset, entry, path, train) for entry in entries if entry]
    if not made:
        raise UserError(f"--clip_list {path}: names no clip; one entry for each is needed")
    return made


def _entry(root: Path, dataset: str, entry: list[str], path: Path, train: bool) -> FoundClip:
    """A clip by its entry: [id, video, clip, key frame ...] (vox), [folder, clip, key frame] (lrs), and so on."""
    n_names = {"vox": 3, "lrs": 2, "grid": 2}.get(dataset, 1)
    names, more = [n.strip() for n in entry[:n_names]], entry[n_names:]
    inside = "/".join(names)
    if len(names) < n_names or any(part in ("", "..") for part in inside.split("/")):
        raise UserError(
            f"--clip_list {path}: entry {entry}: needs {n_names} names for {dataset}; check --dataset_name"
        )
    told = more[0].strip() if dataset in ("vox", "lrs") and more else ""
    key = int(told) if told.isascii() and told.isdigit() else -1
    if dataset == "vox":
        folders = _VOX_FOLDERS if train else _VOX_FOLDERS[::-1]
        folder = next((f for f in folders if (root / f / names[0]).is_dir()), folders[0])
        return _found(f"{folder}/{inside}", dataset, key)
    if dataset == "lrs":
        # The public list's clip names go on behind the first underscore after the number.
        return _found(f"test/{names[0]}/{names[1].split('_')[0]}", dataset, key)
    suffix = next((s for s in _LISTED_SUFFIXES if inside.endswith(s)), "")
    folder = {"grid": "align/", "crema": "VideoFlash/"}.get(dataset, "")
    return _found(folder + inside.removesuffix(suffix), dataset)
