"""One clip, from the raw file to everything that training reads: crop, landmarks, pose, 3D projection, voice.

Depends on the clip and the settings alone, so that clips can be prepared in any order, on any machine, and again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.signal import savgol_filter

from data.contract import ClipRecord, RawClip, SkippedClip, clip_paths
from data.preprocessing.clip_files import FLAG, staged, write_array, write_tensors
from data.preprocessing.clip_source import ClipSource, read_sound, source_bytes, source_name
from data.preprocessing.quality import (
    ClosedGate,
    FrameWatch,
    check_lips,
    check_place,
    check_track,
    landmark_jitter,
    longest_run,
)
from face.contract_pose import frontal_key_frame, frontalise, standard_face
from face.crop import CROP_SIZE, CropBox, crop_boxes, extract, extract_whole, whole
from face.expression_basis import lip_gap, load_basis
from face.landmarks68 import to_landmarks68
from face.pose import Pose, fit_pose, to_canonical
from face.reference import HALF_PIXEL, ReferenceFace
from face.tracker import FaceTrack, FaceTracker, join_observations, nearest_seen
from options.preprocess import CROPS, VIDEOS, QualityGates
from util.audio import write_wav
from util.errors import UserError
from util.jpeg_video import JPEG_QUALITY, H264Writer, JpegWriter, decode_jpeg, encode_jpeg, frame_bytes
from util.types import FPS, SAMPLE_RATE, Voice

VERSION = "1"  # of `_track.safetensors`
STEADY = 5  # frames: target clips of a demo are smoothed likewise (models/driving.py)
STEPS = 64  # of a vertex's position per pixel, in the track
CHUNK = 16  # 3D projection images drawn at a time


@dataclass(frozen=True)
class ClipSettings:
    """Everything that changes what a clip becomes. Raises UserError for words that aren't known."""

    size: int = CROP_SIZE  # pixels of the square crop
    crop: str = "static"  # one box per clip, so that the background stands still; "moving": a smoothed path
    video: str = (
        "jpeg"  # a JPEG per frame, to be read in any order; "h264": two fifths of the bytes, slower to read
    )
    jpeg_quality: int = JPEG_QUALITY
    gates: QualityGates = field(default_factory=QualityGates)

    def __post_init__(self) -> None:
        for name, known in (("crop", CROPS), ("video", VIDEOS)):
            if getattr(self, name) not in known:
                raise UserError(f"--{name} {getattr(self, name)}: choose one of {', '.join(known)}")


@dataclass(frozen=True)
class ClipTools:
    """What comes from models; functions of modules, so that other processes find them by name."""

    ani: Callable[[ReferenceFace, np.ndarray, Pose], np.ndarray]  # face, canonical meshes, poses: RGB frames
    lip_gap: Callable[[Voice], np.ndarray] | None = None  # (T,) lip opening that a voice tells of


@dataclass(frozen=True)
class _Meshes:
    """A clip's face in the pixels of its crop, as it is stored."""

    steps: np.ndarray  # (T, 478, 3) int16: 1/64 pixel
    vertices: np.ndarray  # (T, 478, 3) float32, the same in pixels
    pose: Pose  # T frames
    canonical: np.ndarray  # (T, 478, 3) face units
    boxes: np.ndarray  # (T, 3) float32: left, top, side in source pixels


@dataclass(frozen=True)
class _Work:
    """A clip that passed the gates, before anything of it is written."""

    record: ClipRecord
    source: ClipSource
    track: FaceTrack  # source pixels
    meshes: _Meshes
    rt: np.ndarray  # (T, 6)
    front: np.ndarray  # (T, 68, 3)
    voice: Voice | None


def prepare_clip(
    clip: RawClip, out: Path, root: Path, settings: ClipSettings, tools: ClipTools
) -> ClipRecord | SkippedClip:
    """Make the files of one clip under `out`, all of them or none; what is there already is replaced.

    root: --dataroot, to which the record's source is relative. A clip that cannot be read or does not pass the gates
    comes back as SkippedClip. Raises UserError for trouble with the output folder only.
    """
    facts = source_name(clip, root), source_bytes(clip)
    try:
        with _one_thread():
            work = _analysed(clip, settings, tools, facts)
            _write(work, Path(out), settings, tools)
            return work.record
    except ClosedGate as gate:
        return SkippedClip(clip.id, *facts, gate.reason, gate.detail)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Results are the same to the bit whatever the number of cores; it is the clips that are done in parallel."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def _analysed(clip: RawClip, settings: ClipSettings, tools: ClipTools, facts: tuple[str, int]) -> _Work:
    """Read and track the clip and measure it. Raises ClosedGate, as early as it can be known."""
    gates = settings.gates
    source = ClipSource(clip.video, gates)
    voice = read_sound(clip, source.n_frames, gates)
    track, frame_size, quality = _tracked(source, gates)
    meshes = _in_crop(_steady(track), track.seen, frame_size, settings)
    landmarks = to_landmarks68(meshes.vertices)
    quality |= check_place(landmarks, meshes.pose.angles_deg, track.seen, settings.size, gates)
    quality |= check_lips(voice, lip_gap(meshes.canonical), track.seen, tools.lip_gap, gates)
    shrink = settings.size / float(meshes.boxes[0, 2])
    quality["jitter_raw"] = shrink * landmark_jitter(to_landmarks68(track.vertices), track.seen)
    quality["jitter"] = landmark_jitter(landmarks, track.seen)
    front, rt = frontalise(landmarks, standard_face(settings.size))
    there = np.flatnonzero(track.seen)
    record = ClipRecord(
        id=clip.id,
        dataset=clip.dataset,
        speaker=clip.speaker,
        split=clip.split,
        frames=len(track),
        longest_run=longest_run(track.seen),
        key_frame=int(there[frontal_key_frame(rt[there])]),
        audio=clip.audio_id if voice is not None else "",
        source=facts[0],
        source_bytes=facts[1],
        source_fps=round(source.fps, 3),
        emotion=clip.emotion,
        intensity=clip.intensity,
        text=clip.text,
        redistributable=clip.redistributable,
        facts=dict(clip.facts),
        quality={name: round(float(value), 4) for name, value in sorted(quality.items())},
    )
    return _Work(record, source, track, meshes, rt, front, voice)


def _tracked(source: ClipSource, gates: QualityGates) -> tuple[FaceTrack, tuple[int, int], dict[str, float]]:
    """The face of every frame in source pixels, the frames' (width, height), and what the gates measured."""
    found, seconds, watch, frame_size = [], [], FrameWatch(), (0, 0)
    with FaceTracker(FPS, matrices=False) as tracker:
        for frame in source.frames():
            face = tracker.track(frame)
            found.append(face)
            seconds.append(tracker.second_width)
            watch.add(frame, face)
            watch.check_seen(source.n_frames, gates)
            frame_size = frame.shape[1], frame.shape[0]
    source.check_length(len(found), gates)
    watch.check_seen(len(found), gates)
    track = join_observations(found, seconds)
    return track, frame_size, check_track(track, watch, gates)


def _steady(track: FaceTrack) -> np.ndarray:
    """(T, 478, 3) meshes without the tracker's jitter, each run of seen frames for itself; peaks are kept."""
    steady = track.vertices.copy()
    there = np.flatnonzero(track.seen)
    for run in np.split(there, np.flatnonzero(np.diff(there) > 1) + 1):
        if len(run) >= STEADY:
            steady[run] = savgol_filter(track.vertices[run], STEADY, 2, axis=0)
    return steady[nearest_seen(track.seen)]


def _in_crop(
    vertices: np.ndarray, seen: np.ndarray, frame_size: tuple[int, int], settings: ClipSettings
) -> _Meshes:
    """Choose the crop of every frame and bring meshes (T, 478, 3) of source pixels into it."""
    points = to_landmarks68(vertices)
    if settings.crop == "static":
        boxes = [whole(crop_boxes(points[seen], static=True, frame_size=frame_size)[0])] * len(points)
    else:
        boxes = crop_boxes(points, frame_size=frame_size)
    places = np.array([(b.left, b.top, b.side) for b in boxes], np.float32)
    corners = np.pad(places[:, None, :2].astype(np.float64), ((0, 0), (0, 0), (0, 1)))
    pixels = (vertices - corners) * (settings.size / places[:, None, 2:].astype(np.float64)) - HALF_PIXEL
    steps = np.clip(np.rint(pixels * STEPS), -32768, 32767).astype(np.int16)
    stored = steps.astype(np.float32) / STEPS
    pose = fit_pose(stored, load_basis().template)
    return _Meshes(steps, stored, pose, to_canonical(stored, pose), places)


def _write(work: _Work, out: Path, settings: ClipSettings, tools: ClipTools) -> None:
    """All files of a clip under `out`, or none. Raises UserError for trouble with the folder."""
    record, meshes, seen = work.record, work.meshes, work.track.seen
    paths = clip_paths(out, record.id, record.dataset)
    sounds = [out / record.audio] if record.audio else []
    with staged(
        paths.video, paths.landmarks, paths.rt, paths.front, paths.ani, paths.track, *sounds
    ) as parts:
        video, landmarks, rt, front, ani, track, *sound = parts
        blendshapes = np.rint(work.track.blendshapes * 255).clip(0, 255).astype(np.uint8)
        key_image = _write_crops(work, video, settings)
        face = _key_face(key_image, work, blendshapes)
        with _writer(ani, settings) as writer:
            for first in range(0, record.frames, CHUNK):
                part = slice(first, first + CHUNK)
                for frame in tools.ani(face, meshes.canonical[part], meshes.pose[part]):
                    writer.write(frame)
        # The public loader leaves out frames whose landmarks have no extent.
        write_array(landmarks, np.where(seen[:, None, None], to_landmarks68(meshes.vertices), np.float32(0)))
        write_array(rt, work.rt)
        write_array(front, work.front)
        tensors = {
            "vertices": meshes.steps,
            "blendshapes": blendshapes,
            "seen": seen,
            "rotation": meshes.pose.rotation,
            "scale": meshes.pose.scale,
            "translation": meshes.pose.translation,
            "crop": meshes.boxes,
        }
        if settings.video == "jpeg":
            tensors |= {"video_bytes": frame_bytes(video), "ani_bytes": frame_bytes(ani)}
        write_tensors(track, tensors, {"version": VERSION, "size": str(settings.size)})
        for path in sound:
            write_wav(path, _fitted(work.voice, record.frames), FLAG)


def _writer(path: Path, settings: ClipSettings) -> JpegWriter | H264Writer:
    size = settings.size, settings.size
    if settings.video == "h264":
        return H264Writer(path, size, FPS, FLAG)
    return JpegWriter(path, size, FPS, settings.jpeg_quality, FLAG)


def _write_crops(work: _Work, path: Path, settings: ClipSettings) -> np.ndarray:
    """Write the cropped video; returns the key frame's picture as a reader of the JPEG video gets it."""
    record, key_image, number = work.record, None, -1
    cut_out = extract_whole if settings.crop == "static" else extract
    with _writer(path, settings) as writer:
        for number, frame in enumerate(work.source.frames()):
            if number == record.frames:
                break
            crop = cut_out(frame, CropBox(*work.meshes.boxes[number].tolist()), settings.size)
            writer.write(crop)
            if number == record.key_frame:
                key_image = decode_jpeg(encode_jpeg(crop, settings.jpeg_quality), record.id)
    if number != record.frames - 1:
        raise ClosedGate("unreadable", f"{work.source.path.name}: changed while it was read")
    return key_image


def _key_face(image: np.ndarray, work: _Work, blendshapes: np.ndarray) -> ReferenceFace:
    """The frame that gives the 3D projection its texture."""
    k, meshes = work.record.key_frame, work.meshes
    return ReferenceFace(
        image=image,
        vertices=meshes.vertices[k],
        canonical=meshes.canonical[k],
        pose=meshes.pose[k : k + 1],
        blendshapes=blendshapes[k].astype(np.float32) / 255,
        box=CropBox(*meshes.boxes[k].tolist()),
        seen_angles=meshes.pose.angles_deg[k],
    )


def _fitted(voice: Voice, n_frames: int) -> Voice:
    """The voice with silence after it, or cut, to the length of T frames."""
    samples = np.zeros(n_frames * SAMPLE_RATE // FPS, np.float32)
    part = voice.samples[: len(samples)]
    samples[: len(part)] = part
    return Voice(samples)
