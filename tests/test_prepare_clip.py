"""One clip prepared: every file of the contract, in step with the others, the same each time; or nothing at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from data.contract import ClipRecord, RawClip, SkippedClip, clip_paths
from data.preprocessing import clip_source
from data.preprocessing.prepare_clip import ClipSettings, ClipTools, prepare_clip
from face.contract_pose import STABLE_POINTS, frontal_key_frame, reverse_rt, standard_face
from face.crop import CropBox, extract
from face.landmarks68 import to_landmarks68
from face.pose import Pose, fit_pose, rotation_from_angles
from face.reference import ReferenceFace
from models.ani_frames import clip_tools, draw_ani
from models.geometric import FaceMotion, GeometricGenerator
from options.preprocess import QualityGates
from tests.faces import basis, reference
from tests.raw_clips import N_FRAMES, babble, faces, files_of, raw_clip, spoilt, write_raw
from util.audio import read_voice, write_wav
from util.errors import UserError
from util.jpeg_video import decode_jpeg
from util.types import SAMPLE_RATE
from util.video import read_frames

TOOLS = ClipTools(**clip_tools())
SETTINGS = ClipSettings()
BLANK = 3  # frames without a face at the start of the module's clip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw folder with one clip, whose first frames show no face."""
    folder = tmp_path_factory.mktemp("raw")
    blank = [np.full_like(faces(1)[0], 128)] * BLANK
    write_raw(folder / "s1" / "a.mp4", [*blank, *faces()[BLANK:]])
    return folder


@pytest.fixture(scope="module")
def clip(root: Path) -> RawClip:
    return raw_clip(root / "s1" / "a.mp4")


@pytest.fixture(scope="module")
def out(root: Path, clip: RawClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clip, prepared."""
    folder = tmp_path_factory.mktemp("out")
    assert isinstance(prepare_clip(clip, folder, root, SETTINGS, TOOLS), ClipRecord)
    return folder


@pytest.fixture(scope="module")
def track(out: Path) -> dict[str, np.ndarray]:
    return load_file(clip_paths(out, "align/s1/a", "grid").track)


def test_every_file_of_the_contract_is_there(out: Path) -> None:
    stem = "align/s1/a"
    named = ("_crop.mp4", "_original.npy", "_rt.npy", "_front.npy", "_ani.mp4", "_track.safetensors")
    assert sorted(files_of(out)) == sorted([*(stem + s for s in named), "audio/s1/a.wav"])
    paths = clip_paths(out, stem, "grid")
    shapes = {"landmarks": (68, 3), "rt": (6,), "front": (68, 3)}
    for name, shape in shapes.items():
        array = np.load(getattr(paths, name), allow_pickle=False)
        assert array.shape == (N_FRAMES, *shape)
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
    for video in (paths.video, paths.ani):
        frames = list(read_frames(video, "clip"))
        assert len(frames) == N_FRAMES
        assert frames[0].shape == (256, 256, 3)


def test_the_same_bytes_again_and_with_other_threads(
    root: Path, clip: RawClip, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the frames do not fit into memory and are decoded twice; and over what an earlier run left."""
    monkeypatch.setattr(clip_source, "MAX_HELD", 10 * 400 * 400 * 3)
    torch.set_num_threads(2)
    (tmp_path / "align" / "s1").mkdir(parents=True)
    (tmp_path / "align" / "s1" / "a_crop.mp4").write_bytes(b"left by a crash")
    record = prepare_clip(clip, tmp_path, root, SETTINGS, TOOLS)
    assert files_of(tmp_path) == files_of(out)
    assert record == prepare_clip(clip, tmp_path, root, SETTINGS, TOOLS)
    assert torch.get_num_threads() == 2


def test_crops_are_the_clips_own_frames(clip: RawClip, out: Path, track: dict[str, np.ndarray]) -> None:
    """As OpenCV reads them, as their bytes give them, and as the box says."""
    path = clip_paths(out, clip.id, "grid").video
    raw, data = list(read_frames(clip.video, "clip")), path.read_bytes()
    reader = cv2.VideoCapture(str(path))
    for k in range(N_FRAMES):
        start, size = track["video_bytes"][k]
        alone = decode_jpeg(data[start : start + size], "clip").astype(int)
        played = cv2.cvtColor(reader.read()[1], cv2.COLOR_BGR2RGB)
        wanted = extract(raw[k], CropBox(*track["crop"][k].tolist()))
        assert np.abs(alone - wanted).mean() < 3
        assert np.abs(alone - played).mean() < 3
    assert not reader.read()[0]


def test_ani_bytes_are_its_frames(clip: RawClip, out: Path, track: dict[str, np.ndarray]) -> None:
    path = clip_paths(out, clip.id, "grid").ani
    data = path.read_bytes()
    for frame, (start, size) in zip(read_frames(path, "ani"), track["ani_bytes"], strict=True):
        assert np.abs(decode_jpeg(data[start : start + size], "ani").astype(int) - frame).mean() < 1


def test_landmarks_and_track_are_one(clip: RawClip, out: Path, track: dict[str, np.ndarray]) -> None:
    """Where no face was seen landmarks are zero, and the track holds the nearest mesh."""
    landmarks = np.load(clip_paths(out, clip.id, "grid").landmarks)
    vertices = track["vertices"].astype(np.float32) / 64
    assert track["vertices"].dtype == np.int16
    assert track["blendshapes"].dtype == np.uint8
    assert track["seen"].tolist() == [False] * BLANK + [True] * (N_FRAMES - BLANK)
    assert (landmarks[:BLANK] == 0).all()
    np.testing.assert_allclose(landmarks[BLANK:], to_landmarks68(vertices)[BLANK:], atol=1 / 64)
    np.testing.assert_array_equal(vertices[0], vertices[BLANK])
    pose = fit_pose(vertices, basis().template)
    for name in ("rotation", "scale", "translation"):
        np.testing.assert_allclose(track[name], getattr(pose, name), rtol=1e-4, atol=1e-4)


def test_front_and_pose_give_the_landmarks_back(
    clip: RawClip, out: Path, track: dict[str, np.ndarray]
) -> None:
    paths = clip_paths(out, clip.id, "grid")
    front, rt = np.load(paths.front), np.load(paths.rt)
    wanted = to_landmarks68(track["vertices"].astype(np.float32) / 64)
    np.testing.assert_allclose(reverse_rt(front, rt), wanted, atol=0.01)
    # The frontal faces lie on the standard one: a portrait that hardly turns has hardly a pose.
    assert np.abs(front - standard_face())[:, STABLE_POINTS, :2].mean() < 4
    assert np.degrees(np.abs(rt[:, :3])).max() < 15


def test_the_record_tells_of_the_clip(clip: RawClip, root: Path, out: Path) -> None:
    record = prepare_clip(clip, out, root, SETTINGS, TOOLS)
    rt = np.load(clip_paths(out, clip.id, "grid").rt)
    assert (record.id, record.dataset, record.speaker) == (clip.id, "grid", "s1")
    assert (record.frames, record.longest_run) == (N_FRAMES, N_FRAMES - BLANK)
    assert record.key_frame == BLANK + frontal_key_frame(rt[BLANK:])
    assert (record.source, record.source_bytes) == ("s1/a.mp4", clip.video.stat().st_size)
    assert (record.audio, record.source_fps) == ("audio/s1/a.wav", 25)
    assert record.quality["seen"] == pytest.approx(1 - BLANK / N_FRAMES)
    assert 60 < record.quality["face_px"] < 80
    assert record.quality["jitter"] < record.quality["jitter_raw"]
    assert ClipRecord.from_dict(json.loads(record.line())) == record


def test_the_voice_is_as_long_as_the_clip(clip: RawClip, out: Path, root: Path, tmp_path: Path) -> None:
    heard = read_voice(out / "audio" / "s1" / "a.wav", "wav")
    assert len(heard.samples) == N_FRAMES * SAMPLE_RATE // 25
    short = tmp_path / "short.wav"
    write_wav(short, babble(0.8))
    record = prepare_clip(replace(clip, audio=short), tmp_path, root, SETTINGS, TOOLS)
    padded = read_voice(tmp_path / record.audio, "wav").samples
    assert len(padded) == len(heard.samples)
    assert (padded[round(0.8 * SAMPLE_RATE) + 10 :] == 0).all()
    np.testing.assert_allclose(padded[:12000], babble(0.8).samples[:12000], atol=1e-3)
    assert record.source_bytes == clip.video.stat().st_size + short.stat().st_size


def test_ani_is_what_the_geometric_generator_draws() -> None:
    """The fast drawer against the one of the pipeline, on a turned and speaking face."""
    face = reference().ani
    rng = np.random.default_rng(0)
    canonical = face.canonical + basis().offsets(rng.normal(0, 1, (4, basis().n_components)))
    yaw = np.array([0, 10, -20, 30])
    turn = rotation_from_angles(np.stack([yaw, 0 * yaw, 0 * yaw], 1))
    turned = Pose(
        face.pose.rotation @ turn, np.repeat(face.pose.scale, 4), np.repeat(face.pose.translation, 4, 0)
    )
    drawn = draw_ani(face, canonical, turned)
    generator = GeometricGenerator(face, basis(), depth=1.0, crispness=0.0)
    motion = FaceMotion(canonical, turned, np.zeros((4, 2), np.float32))
    wanted = generator.project(motion).ani.clamp(0, 1).mul(255).round().permute(0, 2, 3, 1).numpy()
    difference = np.abs(drawn - wanted)
    assert (drawn.max(-1) > 0).mean() > 0.1
    assert ((drawn.max(-1) > 0) != (wanted.max(-1) > 0)).mean() < 1e-3
    assert difference.mean() < 0.05
    assert (difference.max(-1) > 8).mean() < 1e-3


def test_ani_lies_on_the_face(clip: RawClip, out: Path, root: Path, track: dict[str, np.ndarray]) -> None:
    """In the key frame the projection is the picture itself; outside the face it is black."""
    record = prepare_clip(clip, out, root, SETTINGS, TOOLS)
    paths = clip_paths(out, clip.id, "grid")
    video, ani = (list(read_frames(p, "clip")) for p in (paths.video, paths.ani))
    for k, limit in ((record.key_frame, 3.0), (N_FRAMES - 1, 12.0)):
        oval = np.zeros((256, 256), np.uint8)
        points = track["vertices"][k, :468, :2] / 64
        cv2.fillConvexPoly(oval, cv2.convexHull(np.round(points).astype(np.int32)), 1)
        inside = cv2.erode(oval, np.ones((9, 9), np.uint8)) > 0
        outside = cv2.dilate(oval, np.ones((17, 17), np.uint8)) == 0
        assert np.abs(ani[k].astype(int) - video[k])[inside].mean() < limit
        assert ani[k][outside].max() < 12


def test_a_folder_of_pictures_is_a_clip(clip: RawClip, root: Path, tmp_path: Path) -> None:
    """Numbers in the names count, not their spelling."""
    folder = tmp_path / "raw" / "a"
    folder.mkdir(parents=True)
    for k, frame in enumerate(faces()):
        cv2.imwrite(str(folder / f"{k + 1}.png"), frame[..., ::-1])
    source = replace(clip, video=folder, audio=clip.video)
    record = prepare_clip(source, tmp_path / "out", tmp_path / "raw", SETTINGS, TOOLS)
    assert (record.frames, record.source, record.source_fps) == (N_FRAMES, "a", 25)
    video = list(read_frames(clip_paths(tmp_path / "out", clip.id, "grid").video, "clip"))
    box = CropBox(*load_file(clip_paths(tmp_path / "out", clip.id, "grid").track)["crop"][0].tolist())
    for k in (0, 9, 23):
        assert np.abs(video[k].astype(int) - extract(faces()[k], box)).mean() < 4
    cv2.imwrite(str(folder / "7.png"), np.zeros((8, 8, 3), np.uint8))
    skipped = prepare_clip(source, tmp_path / "out", tmp_path / "raw", SETTINGS, TOOLS)
    assert (skipped.reason, "another size" in skipped.detail) == ("unreadable", True)


def test_other_settings(clip: RawClip, root: Path, tmp_path: Path) -> None:
    """A moving crop follows the face; H.264 is smaller and has no byte ranges; vox has its own names."""
    settings = ClipSettings(size=128, crop="moving", video="h264")
    source = replace(clip, id="unzip/dev_video/id1/v/1", dataset="vox")
    record = prepare_clip(source, tmp_path, root, settings, TOOLS)
    paths = clip_paths(tmp_path, record.id, "vox")
    assert paths.video.name == "1_aligned.mp4"
    track = load_file(paths.track)
    assert not {"video_bytes", "ani_bytes"} & set(track)
    assert np.ptp(track["crop"][BLANK:, 0]) > 1
    assert np.ptp(track["crop"][:, 2]) == 0
    eyes = to_landmarks68(track["vertices"] / 64)[BLANK:, 36:48, :2].mean(1)
    np.testing.assert_allclose(eyes, np.tile([62.5, 50], (len(eyes), 1)), atol=6)
    with av.open(str(paths.video)) as file:
        assert (file.streams.video[0].codec_context.name, file.streams.video[0].width) == ("h264", 128)


@pytest.mark.parametrize(("field", "word"), [("crop", "square"), ("video", "gif")])
def test_unknown_words_are_refused(field: str, word: str) -> None:
    with pytest.raises(UserError, match=rf"--{field} {word}: choose one of"):
        ClipSettings(**{field: word})


KINDS = ("empty", "cut off", "text", "noise", "zeros inside", "head only", "picture")


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_read_is_skipped(clip: RawClip, root: Path, tmp_path: Path, kind: str) -> None:
    path = spoilt(root / "spoilt", clip.video.read_bytes(), [kind])[kind]
    skipped = prepare_clip(replace(clip, video=path), tmp_path, root, SETTINGS, TOOLS)
    assert isinstance(skipped, SkippedClip)
    assert skipped.reason in ("unreadable", "too_short")
    assert skipped.source == f"spoilt/{kind}.mp4"
    assert skipped.source_bytes == path.stat().st_size
    assert skipped.detail
    assert "\n" not in skipped.detail
    assert files_of(tmp_path) == {}


def test_missing_and_empty_folders_are_skipped(clip: RawClip, root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "no.mp4", tmp_path / "empty"):
        skipped = prepare_clip(replace(clip, video=path), tmp_path / "out", root, SETTINGS, TOOLS)
        assert (skipped.reason, skipped.source) == ("unreadable", path.as_posix())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "error", [IndexError("list index out of range"), MemoryError(), OSError(5, "I/O error")]
)
def test_whatever_a_reader_stumbles_over_is_a_skipped_clip(
    clip: RawClip, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """PyAV raises IndexError on an FLV whose flipped bits look like another stream's beginning."""

    def stumble(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(clip_source, "read_frames", stumble)
    skipped = prepare_clip(clip, tmp_path, root, SETTINGS, TOOLS)
    assert (skipped.id, skipped.reason) == (clip.id, "unreadable")
    assert files_of(tmp_path) == {}


def test_a_full_disk_is_an_error_and_leaves_nothing(
    clip: RawClip, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *args: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("data.preprocessing.prepare_clip.write_tensors", full)
    with pytest.raises(
        UserError, match="no space is left there; free some, or choose another folder with --out"
    ):
        prepare_clip(clip, tmp_path, root, SETTINGS, TOOLS)
    assert files_of(tmp_path) == {}


def test_a_folder_in_the_way_is_an_error(clip: RawClip, root: Path, tmp_path: Path) -> None:
    (tmp_path / "align").write_bytes(b"a file where a folder is to be")
    with pytest.raises(UserError, match=r"cannot be written to .*--out"):
        prepare_clip(clip, tmp_path, root, SETTINGS, TOOLS)
    assert list(files_of(tmp_path)) == ["align"]


def test_a_crash_leaves_nothing(clip: RawClip, root: Path, tmp_path: Path) -> None:
    def broken(face: ReferenceFace, canonical: np.ndarray, pose: Pose) -> np.ndarray:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        prepare_clip(clip, tmp_path, root, SETTINGS, replace(TOOLS, ani=broken))
    assert files_of(tmp_path) == {}


def test_without_gates_a_clip_without_sound_is_kept(clip: RawClip, root: Path, tmp_path: Path) -> None:
    silent = write_raw(tmp_path / "raw" / "silent.mp4", sound=False)
    settings = ClipSettings(gates=QualityGates(min_sound=0))
    record = prepare_clip(replace(clip, video=silent), tmp_path / "out", root, settings, TOOLS)
    assert record.audio == ""
    assert not (tmp_path / "out" / "audio").exists()
