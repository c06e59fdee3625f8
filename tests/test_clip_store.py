"""The clip store: frames and meshes as in the clip; whole files only; what is there is kept, bad clips are left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data import clip_store
from data.clip_store import MIN_FRAMES, RUN, StoredClip, prepare_clips, spread, store_rows
from data.tracks import clip_track
from face.crop import crop_boxes, extract
from face.landmarks68 import to_landmarks68
from face.reference import HALF_PIXEL
from face.tracker import detect_face
from tests.clips import moving_portrait
from util.errors import UserError
from util.video import read_frames

SIZE = 128


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one clip, its tracks beside it."""
    folder = tmp_path_factory.mktemp("plain")
    moving_portrait(folder / "clips" / "ann" / "a.mp4")
    return folder


@pytest.fixture(scope="module")
def store(root: Path) -> StoredClip:
    return prepare(root, root / "store")[0]


def prepare(root: Path, folder: Path, size: int = SIZE, n_processes: int = 1) -> list[StoredClip]:
    return prepare_clips(store_rows(root / "clips"), folder, root / "tracks", size, n_processes)


def test_frames_are_those_of_the_clip(root: Path, store: StoredClip) -> None:
    row = store_rows(root / "clips")[0]
    track = clip_track(row, root / "tracks")
    frames = list(read_frames(row.path, "clip"))
    assert store.number.tolist() == np.flatnonzero(track.seen).tolist()
    shape = frames[0].shape[1::-1]
    box = crop_boxes(to_landmarks68(track.vertices), static=True, frame_size=shape)[0]
    asked = [5, 0, len(store) - 1]
    for k, image in zip(asked, store.images(asked), strict=True):
        wanted = extract(frames[store.number[k]], box, SIZE)
        assert np.abs(image.astype(int) - wanted).mean() < 1.5
    np.testing.assert_allclose(store.blendshapes(asked), track.blendshapes[store.number[asked]])


def test_meshes_lie_on_the_faces(store: StoredClip) -> None:
    """Against the landmarker on the stored frames themselves: 0.6 px of 128 on average."""
    for k in (0, 9, 20):
        seen = detect_face(store.images([k])[0], "frame").vertices - HALF_PIXEL
        gap = (store.vertices([k])[0] - seen)[:468, :2]
        assert np.linalg.norm(gap, axis=1).mean() < 1.5
        assert np.abs(gap.mean(0)).max() < 0.8
    assert store.pose.rotation.shape == (len(store), 3, 3)
    assert np.ptp(store.angles[:, 2]) > 8  # the clip's roll


def test_what_is_there_is_kept(root: Path, store: StoredClip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_store, "_content", lambda *_: pytest.fail("made again"))
    again = prepare(root, store.path.parent)
    assert [c.path for c in again] == [store.path]


def test_another_size_and_damage_are_made_again(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = prepare(root, tmp_path, 64)[0].path
    assert prepare(root, tmp_path, 96)[0].images([0]).shape == (1, 96, 96, 3)
    path.write_bytes(path.read_bytes()[:20_000])
    assert prepare(root, tmp_path, 96)[0].images([3]).shape == (1, 96, 96, 3)
    assert "damaged" in capsys.readouterr().err


def test_a_stop_in_the_middle_leaves_no_half_file(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(_: dict, path: Path, __: dict) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(clip_store, "save_file", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(root, tmp_path, 64)
    assert list(tmp_path.iterdir()) == []
    assert len(prepare(root, tmp_path, 64)) == 1


def test_bad_clips_are_left_out_and_reported(
    root: Path, tmp_path: Path, media: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"no video at all")
    (tmp_path / "clips" / "b.mp4").write_bytes(media("grey.mp4").read_bytes())
    (tmp_path / "clips" / "c.mp4").write_bytes((root / "clips" / "ann" / "a.mp4").read_bytes())
    clips = prepare(tmp_path, tmp_path / "store")
    assert [c.path.name for c in clips] == ["c.mp4.safetensors"]
    assert "2 clips left out; the first: " in capsys.readouterr().err


def test_two_processes_make_what_one_makes(root: Path, store: StoredClip, tmp_path: Path) -> None:
    source, track = root / "clips" / "ann" / "a.mp4", next((root / "tracks").glob("*.npz"))
    for name in ("a.mp4", "b.mp4"):
        for folder, content, suffix in (("clips", source, ""), ("tracks", track, ".npz")):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}{suffix}").write_bytes(content.read_bytes())
    made = prepare(tmp_path, tmp_path / "store", n_processes=2)
    assert [c.identity for c in made] == ["a.mp4", "b.mp4"]
    assert all((c.images([3]) == store.images([3])).all() for c in made)


@pytest.mark.parametrize(
    ("name", "value", "told"), [("MAX_YAW", -1.0, "turned"), ("MIN_FRAMES", 99, "usable")]
)
def test_turned_and_short_clips_are_left_out(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: float,
    told: str,
) -> None:
    monkeypatch.setattr(clip_store, name, value)
    assert prepare(root, tmp_path, 64) == []
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_long_clips_keep_runs_of_neighbours() -> None:
    kept = spread(np.arange(5000))
    assert len(kept) == len(set(kept.tolist())) == 400
    assert kept[-1] == 4999
    assert (np.diff(kept) == 1).sum() == 400 - 400 // RUN
    assert spread(np.arange(300)).tolist() == list(range(300))
    assert MIN_FRAMES < RUN


def test_damaged_frame_is_named(store: StoredClip, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    bytes_ = bytearray(store.path.read_bytes())
    start = bytes_.index(b"\xff\xd8\xff")
    bytes_[start : start + 300] = bytes(300)
    path.write_bytes(bytes_)
    with pytest.raises(UserError, match="damaged frame"):
        StoredClip(path, "ann", store.number, store.pose, store.lip_gap).images([0])


def test_rows_of_a_plain_folder(tmp_path: Path) -> None:
    for name in ("b.MP4", "a.avi", "id7/x/1.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    rows = store_rows(tmp_path)
    assert [(r.id, r.identity) for r in rows] == [
        ("a.avi", "a.avi"),
        ("b.MP4", "b.MP4"),
        ("id7__x__1.mp4", "id7"),
    ]
    assert store_rows(tmp_path, "dev") == []
    with pytest.raises(UserError, match="no such folder"):
        store_rows(tmp_path / "nowhere")


def test_rows_of_a_pack(tmp_path: Path) -> None:
    columns = "id,kind,split,path,identity,category,sync_class,speaking,redistributable"
    rows = ["b,clip,train,b.mp4,p,c,A,yes,no", "a,clip,train,a.mp4,p,c,A,yes,unknown"]
    rows += ["d,clip,dev,d.mp4,q,c,A,yes,no", "p,photo,train,p.png,r,c,,,yes"]
    (tmp_path / "manifest.csv").write_text("\n".join([columns, *rows]))
    assert [r.id for r in store_rows(tmp_path)] == ["a", "b"]
    assert [r.id for r in store_rows(tmp_path, free_only=True)] == ["a"]
    assert [r.id for r in store_rows(tmp_path, "dev")] == ["d"]


def test_a_clip_of_the_pack(pack: Path, tmp_path: Path) -> None:
    rows = [r for r in store_rows(pack, "dev") if r.is_segment][:1]
    clip = prepare_clips(rows, tmp_path / "store", tmp_path / "tracks", SIZE)[0]
    assert MIN_FRAMES <= len(clip) <= 40
    assert clip.identity == rows[0].identity
