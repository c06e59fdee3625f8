"""The data contract: a clip before and after preprocessing, its files, and its line in the index.

Names and arrays: ../shared/parity/rhm/README.md, section 8. The public code's readers find what they look for;
`_track.safetensors` and the index are ours.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

INDEX = "clips.jsonl"  # one line per clip that was kept, sorted by id
SKIPPED = "skipped.jsonl"  # one line per clip that was not, with its reason
SETTINGS = "preprocess.json"  # the options that the files were made with
DATASET_NAMES = ("vox", "lrs", "grid", "crema", "folder")


@dataclass(frozen=True)
class RawClip:
    """One clip of a data set as it was downloaded, and where its files go."""

    id: str  # place under OUT, without suffix, as in align/s1/bbaf2n; unique
    video: Path  # a video file, or a folder of numbered pictures at 25 per second
    audio: Path | None  # a sound file of its own; None: the video's sound
    audio_id: str  # place of the 16 kHz wav under OUT, as in audio/s1/bbaf2n.wav
    dataset: str  # one of DATASET_NAMES: decides the suffixes
    speaker: str  # whoever is to be in one split only
    split: str  # train, or what is left out of training: test (the pack: dev)
    emotion: str = ""  # one of util.types.EMOTIONS, or empty where it isn't known
    intensity: str = ""  # low, medium, high, or empty
    text: str = ""  # the words that are spoken, lower case
    redistributable: str = ""  # the pack's word
    facts: dict[str, str] = field(default_factory=dict)  # whatever else is known, e.g. age and sex


@dataclass(frozen=True)
class ClipPaths:
    """The files of one prepared clip."""

    video: Path  # (T, 256, 256) RGB at 25 per second
    landmarks: Path  # (T, 68, 3) float32 pixels; z grows away from the camera
    rt: Path  # (T, 6) float32: rotation vector, translation
    front: Path  # (T, 68, 3) float32 pixels of the standard face
    ani: Path  # the 3D projection image of every frame
    track: Path  # ours: mesh, blendshapes, where each picture lies in `video`


_ALIGNED = ("_aligned.mp4", "_aligned.npy", "_aligned_rt.npy", "_aligned_front.npy", "_aligned_ani.mp4")
_CROP = ("_crop.mp4", "_original.npy", "_rt.npy", "_front.npy", "_ani.mp4")


def video_suffix(dataset: str) -> str:
    """What a prepared clip's video is called after its id."""
    return (_ALIGNED if dataset == "vox" else _CROP)[0]


def clip_paths(root: str | Path, id_: str, dataset: str) -> ClipPaths:
    """The files of a prepared clip under `root`."""
    suffixes = _ALIGNED if dataset == "vox" else _CROP
    stem = f"{root}/{id_}"
    track = "_aligned_track.safetensors" if dataset == "vox" else "_track.safetensors"
    return ClipPaths(*(Path(stem + s) for s in (*suffixes, track)))


@dataclass(frozen=True)
class ClipRecord:
    """A prepared clip's line in the index."""

    id: str
    dataset: str
    speaker: str
    split: str
    frames: int  # T at 25 per second
    longest_run: int  # most frames in a row in which the face was seen
    key_frame: int  # the one turned least, which gives `ani` its texture
    audio: str  # place of the wav under the root, or empty where there is no sound
    source: str  # name of the raw file under --dataroot
    source_bytes: int  # its size, sound file included: another size means another file
    source_fps: float
    emotion: str = ""
    intensity: str = ""
    text: str = ""
    redistributable: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    quality: dict[str, float] = field(default_factory=dict)  # what the gates measured

    def line(self) -> str:
        """The record as one line of JSON, without its end."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_dict(cls, values: dict) -> ClipRecord:
        """The record of a parsed line. Raises TypeError or ValueError where it isn't one."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


@dataclass(frozen=True)
class SkippedClip:
    """A clip that was left out, and why."""

    id: str
    source: str
    source_bytes: int
    reason: str  # one word of data.preprocessing.quality.REASONS
    detail: str  # one line for people

    def line(self) -> str:
        """The same as one line of JSON, without its end."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
