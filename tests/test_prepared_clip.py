"""Prepared clips, frame by frame: ours and the public code's, from files and tars; bad files are refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from prepared import SIZE, level_of, public_clip, public_landmarks

from data import clip_frames
from data.array_files import TensorFile, read_npy
from data.byte_range import ByteRange
from data.clip_frames import JpegFrames, SeekFrames, open_frames
from data.contract import ClipPaths, clip_paths
from data.prepared_clip import ClipFiles, PreparedClip
from face.contract_pose import reverse_rt, smooth_landmarks
from face.landmarks68 import to_landmarks68
from face.pose import apply_pose, to_canonical
from face.reference import HALF_PIXEL
from face.tracker import detect_face
from util.errors import UserError
from util.jpeg_video import H264Writer
from util.video import read_frames


def ours(prepared: Path) -> ClipPaths:
    return clip_paths(prepared, "clips/ann/a", "folder")


@pytest.fixture(scope="module")
def clip(prepared: Path) -> PreparedClip:
    return PreparedClip.open(ClipFiles.of(ours(prepared)))


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> ClipPaths:
    """A vox clip by the public code's names: 40 frames, one key frame."""
    root = tmp_path_factory.mktemp("public")
    public_clip(root, "unzip/dev_video/id1/v/00001", "vox")
    return clip_paths(root, "unzip/dev_video/id1/v/00001", "vox")


def levels(images: np.ndarray) -> list[int]:
    return [level_of(image) for image in images]


def test_frames_are_those_of_the_video(prepared: Path, clip: PreparedClip) -> None:
    shown = list(read_frames(ours(prepared).video, "clip"))
    assert clip.number.tolist() == list(range(len(shown)))
    asked = [5, 0, len(clip) - 1, 5]
    for k, image in zip(asked, clip.images(asked), strict=True):
        assert np.abs(image.astype(int) - shown[k]).mean() < 1.5
    drawn = list(read_frames(ours(prepared).ani, "ani"))
    assert np.abs(clip.ani([7])[0].astype(int) - drawn[7]).mean() < 1.5


def test_meshes_lie_on_the_faces(clip: PreparedClip) -> None:
    """Against the landmarker on the stored frames themselves: 0.6 px of 128 on average."""
    for k in (0, 9, 20):
        seen = detect_face(clip.images([k])[0], "frame").vertices - HALF_PIXEL
        gap = (clip.vertices([k])[0] - seen)[:468, :2]
        assert np.linalg.norm(gap, axis=1).mean() < 1.5
    np.testing.assert_allclose(to_landmarks68(clip.vertices([4, 9])), clip.landmarks[[4, 9]], atol=1e-5)
    pose = clip.pose[[3, 8]]
    meshes = clip.vertices([3, 8])
    np.testing.assert_allclose(apply_pose(to_canonical(meshes, pose), pose), meshes, atol=1e-3)
    assert np.ptp(clip.angles[:, 2]) > 8  # the clip's roll
    assert clip.blendshapes([1, 2]).shape == (2, 52)


def test_another_size_moves_all_pixels_alike(prepared: Path, clip: PreparedClip) -> None:
    half = PreparedClip.open(ClipFiles.of(ours(prepared)), size=64)
    assert half.images([0]).shape == half.ani([0]).shape == (1, 64, 64, 3)
    np.testing.assert_allclose(half.landmarks[:, :, 0], (clip.landmarks[:, :, 0] + 0.5) / 2 - 0.5, atol=1e-4)
    np.testing.assert_allclose(half.landmarks[:, :, 2], clip.landmarks[:, :, 2] / 2, atol=1e-4)
    meshes, pose = half.vertices([3]), half.pose[[3]]
    canonical = to_canonical(clip.vertices([3]), clip.pose[[3]])
    np.testing.assert_allclose(to_canonical(meshes, pose), canonical, atol=1e-4)


def test_members_of_a_tar_are_read_in_place(prepared: Path, clip: PreparedClip, tmp_path: Path) -> None:
    paths, tar = vars(ours(prepared)), tmp_path / "x.tar"
    with tarfile.open(tar, "w") as archive:
        for name, path in paths.items():
            archive.add(path, f"a.{name}")
    with tarfile.open(tar) as archive:
        found = {m.name[2:]: ByteRange(tar, m.offset_data, m.size, m.name) for m in archive}
    packed = PreparedClip.open(ClipFiles(**found))
    assert (packed.images([9, 2]) == clip.images([9, 2])).all()
    assert (packed.vertices([9, 2]) == clip.vertices([9, 2])).all()
    assert (packed.landmarks == clip.landmarks).all()
    # A video without a list of places is found in there, too.
    plain = open_frames(found["video"])
    assert isinstance(plain, JpegFrames)
    assert (np.stack(plain([9, 2])) == clip.images([9, 2])).all()
    assert found["video"].open().read() == paths["video"].read_bytes()
    with pytest.raises(UserError, match=r"x.tar, a.video: is damaged or cut off"):
        found["video"].read_part(found["video"].size - 3, 4)


def test_public_h264_is_copied_once(
    public: ClipPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, asked = ClipFiles.of(public), [31, 2, 17, 2]
    made = PreparedClip.open(files, cache=tmp_path)
    assert levels(made.images(asked)) == asked
    assert round(float(made.ani([7])[0, 100, 100].mean())) in range(105, 110)  # a square of level 107
    copies = sorted(tmp_path.rglob("*.mp4"))
    assert len(copies) == 2  # video and ani
    monkeypatch.setattr(clip_frames, "_make_copy", lambda *_: pytest.fail("made again"))
    monkeypatch.setattr(clip_frames, "_decoded", lambda *_: pytest.fail("decoded"))
    assert levels(PreparedClip.open(files, cache=tmp_path).images(asked)) == asked
    assert not list(tmp_path.rglob(".part-*"))


@pytest.mark.parametrize("short", [False, True], ids=["one key frame, B frames", "key frame every 5"])
def test_h264_is_decoded_from_the_key_frame_before(
    public: ClipPaths, tmp_path: Path, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = public.video
    if short:
        path = tmp_path / "short.mp4"
        with H264Writer(path, (64, 64)) as video:
            for k in range(40):
                video.write(np.full((64, 64, 3), 16 + 3 * k, np.uint8))
    frames = open_frames(ByteRange.whole(path), tmp_path / "cache" if short else None)
    assert isinstance(frames, SeekFrames)
    asked = [39, 0, 12, 13, 25, 12]
    assert levels(frames(asked)) == asked
    assert not (tmp_path / "cache").exists()
    if short:
        seen = []
        plain = clip_frames._decoded
        monkeypatch.setattr(clip_frames, "_decoded", lambda c, s, w: seen.append(w) or plain(c, s, w))
        frames([11, 12, 30])
        assert [len(w) for w in seen] == [2, 1]  # two groups of five, nothing before them


def test_public_landmarks_are_cleaned(tmp_path: Path) -> None:
    public_clip(tmp_path, "align/s1/a", "grid", ani=False)
    paths = clip_paths(tmp_path, "align/s1/a", "grid")
    landmarks = public_landmarks(40)
    landmarks[[0, 7]] = 0
    landmarks[20, :, 1] = 3.0  # a box of no height
    np.save(paths.landmarks, landmarks)
    clip = PreparedClip.open(ClipFiles.of(paths))
    kept = np.setdiff1d(np.arange(40), [0, 7, 20])
    assert clip.number.tolist() == kept.tolist()
    np.testing.assert_array_equal(clip.landmarks, smooth_landmarks(landmarks[kept]))
    np.testing.assert_array_equal(clip.rt, np.load(paths.rt)[kept])
    assert levels(clip.images([0, 6, 18])) == [1, 8, 21]
    assert not clip.has_ani
    assert not clip.has_mesh
    with pytest.raises(UserError, match="no 3D projection video"):
        clip.ani([0])
    opening = np.load(paths.front)[kept]
    np.testing.assert_allclose(
        clip.opening, (opening[:, [67, 66, 65], 1] - opening[:, [61, 62, 63], 1]).mean(1), rtol=1e-5
    )


def test_smoothing_is_the_contracts(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    n = len(golden["lmark"])
    public_clip(tmp_path, "align/s1/a", "grid", n_frames=n, ani=False)
    paths = clip_paths(tmp_path, "align/s1/a", "grid")
    np.save(paths.landmarks, golden["lmark"])
    clip = PreparedClip.open(ClipFiles.of(paths))
    np.testing.assert_allclose(clip.landmarks, golden["lmark_smoothed"], atol=1e-3)


def test_ani_landmarks_are_the_key_frames(public: ClipPaths, prepared: Path, clip: PreparedClip) -> None:
    front, rt = np.load(public.front), np.load(public.rt)
    made = PreparedClip.open(ClipFiles.of(public))
    key = int(np.abs(rt[:, :3]).sum(1).argmin())
    np.testing.assert_allclose(made.ani_landmarks([2, 30]), reverse_rt(front[key], rt[[2, 30]]), atol=1e-4)
    told = PreparedClip.open(ClipFiles.of(public), key_frame=5)
    np.testing.assert_allclose(told.ani_landmarks([2]), reverse_rt(front[5], rt[[2]]), atol=1e-4)
    with pytest.raises(UserError, match="no frame 40"):
        PreparedClip.open(ClipFiles.of(public), key_frame=40)
    np.testing.assert_array_equal(clip.ani_landmarks([3]), clip.landmarks[[3]])  # ours show the expression


def test_unseen_and_outside_frames_of_ours_are_dropped(prepared: Path, tmp_path: Path) -> None:
    paths = clip_paths(tmp_path, "clips/ann/a", "folder")
    paths.video.parent.mkdir(parents=True)
    for old, new in zip(vars(ours(prepared)).values(), vars(paths).values(), strict=True):
        new.write_bytes(old.read_bytes())
    landmarks = np.load(paths.landmarks)
    landmarks[4] = 0
    landmarks[6, :, 0] += 100  # nose and mouth leave the picture
    np.save(paths.landmarks, landmarks)
    clip = PreparedClip.open(ClipFiles.of(paths))
    assert clip.number.tolist() == [k for k in range(32) if k not in (4, 6)]
    whole = PreparedClip.open(ClipFiles.of(ours(prepared)))
    assert (clip.images([4, 6]) == whole.images([5, 8])).all()
    assert (clip.vertices([4]) == whole.vertices([5])).all()
    assert (clip.pose.rotation[4] == whole.pose.rotation[5]).all()


def test_lengths_may_differ_a_little(public: ClipPaths, tmp_path: Path) -> None:
    public_clip(tmp_path, "align/s1/a", "grid")
    paths = clip_paths(tmp_path, "align/s1/a", "grid")
    np.save(paths.landmarks, public_landmarks(40)[:38])
    assert len(PreparedClip.open(ClipFiles.of(paths))) == 38
    np.save(paths.landmarks, public_landmarks(40)[:36])
    with pytest.raises(UserError, match=r"a_crop.mp4: video and arrays have 36 to 40 frames"):
        PreparedClip.open(ClipFiles.of(paths))


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def saved(array: np.ndarray, **how: object) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


BAD_ARRAYS = {
    "empty": (b"", "cut off|no .npy"),
    "text": (b"68 points", "no .npy array"),
    "shape": (saved(np.zeros((40, 68, 2), np.float32)), r"shape \(40, 68, 2\); \(T, 68, 3\) is needed"),
    "nan": (saved(np.full((40, 68, 3), np.nan, np.float32)), "frame 0 holds NaN"),
    "cut off": (saved(np.ones((40, 68, 3), np.float32))[:-5], "cut off"),
    "object": (saved(np.array([{}], object)), "holds object|no .npy"),
    "huge": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 68, 3), }"), "cut off"),
    "negative": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 68, 3), }"), "cut off"),
    "code": (npy("__import__('os').system('touch /tmp/ran')"), "no .npy array"),
    "deep": (npy("(" * 100), "no .npy array"),
    "long header": (b"\x93NUMPY\x02\x00" + (1 << 31).to_bytes(4, "little") + b" " * 200, "no .npy"),
    "text values": (saved(np.full((40, 68, 3), "a")), "array of numbers"),
    "far": (saved(np.full((40, 68, 3), 1e9, np.float32)), "pixels away"),
    "no face": (saved(np.zeros((40, 68, 3), np.float32)), "no frame shows a face"),
}


@pytest.mark.parametrize(("data", "told"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays_are_refused_by_name(public: ClipPaths, tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "bad_original.npy"
    path.write_bytes(data)
    files = ClipFiles.of(ClipPaths(**{**vars(public), "landmarks": path}))
    with pytest.raises(UserError, match=told) as caught:
        PreparedClip.open(files)
    assert "bad_original.npy" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_number_types_and_orders_are_read(tmp_path: Path) -> None:
    wanted = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    for made in (wanted.astype(np.float64), wanted.astype(np.int32), np.asfortranarray(wanted)):
        np.save(tmp_path / "a.npy", made)
        read = read_npy(ByteRange.whole(tmp_path / "a.npy"), (2, 3))
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, wanted)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda b: b[: len(b) // 2], "damaged"),
        (lambda b: (1 << 60).to_bytes(8, "little") + b[8:], "a header of"),
        (lambda b: b[:8] + b"x" * (len(b) - 8), "damaged"),
        (lambda b: b.replace(b'"version":"1"', b'"version":"9"'), "another version"),
        (lambda b: b.replace(b'"rotation"', b'"rotatiom"'), "rotation is missing"),
        (lambda b: b.replace(b"[32,478,3]", b"[32,478,9]"), "not in it"),
    ],
    ids=["cut", "huge", "text", "version", "missing", "shape"],
)
def test_bad_tracks_are_refused(
    prepared: Path, tmp_path: Path, spoil: Callable[[bytes], bytes], told: str
) -> None:
    path = tmp_path / "bad_track.safetensors"
    good = ours(prepared).track.read_bytes()
    path.write_bytes(spoil(good))
    assert path.read_bytes() != good
    with pytest.raises(UserError, match=told) as caught:
        PreparedClip.open(ClipFiles.of(ClipPaths(**{**vars(ours(prepared)), "track": path}))).pose.scale.any()
    assert "bad_track" in str(caught.value)


def test_rows_behind_a_tensor_are_not_read(prepared: Path) -> None:
    track = TensorFile(ByteRange.whole(ours(prepared).track))
    with pytest.raises(UserError, match="no row 32"):
        track.rows("vertices", np.array([3, 32]), (478, 3))


def test_damaged_frame_is_named(prepared: Path, tmp_path: Path) -> None:
    path = tmp_path / "a_crop.mp4"
    data = bytearray(ours(prepared).video.read_bytes())
    start = data.index(b"\xff\xd8\xff")
    data[start : start + 300] = bytes(300)
    path.write_bytes(data)
    clip = PreparedClip.open(ClipFiles.of(ClipPaths(**{**vars(ours(prepared)), "video": path})))
    with pytest.raises(UserError, match=r"a_crop.mp4: holds a damaged frame"):
        clip.images([0])
    assert clip.images([5]).shape == (1, SIZE, SIZE, 3)


@pytest.mark.parametrize("keep", [0, 300, 5000], ids=["empty", "head", "half"])
def test_damaged_public_video_is_named(public: ClipPaths, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "bad_aligned.mp4"
    path.write_bytes(public.video.read_bytes()[:keep])
    files = ClipFiles.of(ClipPaths(**{**vars(public), "video": path}))
    with pytest.raises(UserError, match=r"bad_aligned.mp4"):
        PreparedClip.open(files, cache=tmp_path / "cache").images([30])
    assert not list(tmp_path.rglob("*.safetensors"))


def test_missing_files_are_named(public: ClipPaths, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.npy: cannot be read"):
        ClipFiles.of(ClipPaths(**{**vars(public), "rt": tmp_path / "none.npy"}))
    files = ClipFiles.of(ClipPaths(**{**vars(public), "ani": tmp_path / "none.mp4"}))
    assert files.ani is None
