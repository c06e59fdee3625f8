"""The walk through a data set: order, laziness, names and links that nobody would want, messages."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from data.layouts import LAYOUTS, find_clips, walk
from data.layouts.walk import safe_folder, safe_part
from tests.layout_checks import TREES, by_id, touch
from tests.raw_trees import make_grid_tree, make_lrs_tree
from util.errors import UserError


@pytest.mark.parametrize("dataset", TREES)
def test_order_does_not_depend_on_the_file_system(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TREES[dataset](tmp_path, 12, seconds=0.2)
    for name in ("a.mp4", "a.avi", "a.mp4.avi", "a.avi.mp4"):
        touch(tmp_path / name)
    expected = list(by_id(dataset, tmp_path).values())
    scandir = os.scandir

    class Shuffled(list):
        def __enter__(self) -> Shuffled:
            return self

        def __exit__(self, *exc: object) -> None:
            pass

    for seed in range(3):
        draw = random.Random(seed)

        def shuffled(path: Path, draw: random.Random = draw) -> Shuffled:
            entries = Shuffled(scandir(path))
            draw.shuffle(entries)
            return entries

        monkeypatch.setattr(walk.os, "scandir", shuffled)
        assert list(find_clips(dataset, tmp_path)) == expected


def test_ids_ascend_where_one_folder_is_called_as_another_begins(tmp_path: Path) -> None:
    for talk in ("a", "a b", "a0", "a.b"):
        touch(tmp_path / "test" / talk / "1.mp4")
    assert list(by_id("lrs", tmp_path)) == ["test/a b/1", "test/a.b/1", "test/a/1", "test/a0/1"]


@pytest.mark.parametrize("names", [("x.avi", "x.flv", "x.mp4"), ("x.flv", "x.mp4", "x.avi")])
def test_of_converted_copies_the_original_is_taken(names: tuple[str, ...], tmp_path: Path) -> None:
    folder = walk.Folder(tmp_path, list(names), [])
    assert walk.by_stem(walk.clip_names(folder), (".flv", *walk.CLIP_SUFFIXES)) == {"x": "x.flv"}
    assert walk.by_stem(names, (".mp4",)) == {"x": "x.mp4"}


def count_folders(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    scandir, read = os.scandir, []
    monkeypatch.setattr(walk.os, "scandir", lambda path: read.append(path) or scandir(path))
    return lambda: len(read)


@pytest.mark.parametrize("dataset", ["vox", "lrs", "grid", "folder"])
def test_clips_are_found_one_folder_at_a_time(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"vox": "dev/mp4/id{:05}/v/1.mp4", "lrs": "test/{:05}/1.mp4", "grid": "s{}/a.mpg"}
    for k in range(100):
        touch(tmp_path / place.get(dataset, "p{}/1.mp4").format(k))
    n_read = count_folders(monkeypatch)
    clips = find_clips(dataset, tmp_path)
    assert iter(clips) is clips
    at_start = n_read()
    list(islice(clips, 10))
    assert at_start <= 25
    assert n_read() - at_start <= 70
    assert len(list(clips)) == 90


NASTY = [
    "Ünï çödé",
    "a b",
    " a",
    "a\nb",
    "a%0Ab",
    "100%",
    "%41",
    "\u2028",
    "a\\b",
    "-x",
    "~",
    "x" * 240,
    "é" * 120,
]


def test_hostile_names_have_safe_and_different_ids(tmp_path: Path) -> None:
    raw = [
        *(os.fsencode(n) for n in NASTY),
        b"\xff\xfe",
        b"\xe9",
        b"x" * 239 + b"y",
        b"a.wav/b",
        b"a",
        b"d_crop.mp4/b",
        b"d",
    ]
    for name in raw:
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name + b".mp4"))
        touch(path)
    clips = by_id("folder", tmp_path)
    assert len(clips) == len(raw)
    assert clips["clips/Ünï çödé"].video.read_bytes() == b"x"
    assert clips["clips/a%0Ab"].video.name == "a\nb.mp4"
    assert clips["clips/a%250Ab"].video.name == "a%0Ab.mp4"
    assert clips["clips/100%"].video.name == "100%.mp4"
    assert clips["clips/%FF%FE"].video.exists()


@pytest.mark.parametrize("seed", range(5))
def test_ids_of_random_trees(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    letters = [
        "a",
        "b",
        "%",
        "4",
        "1",
        ".",
        " ",
        "/",
        "\n",
        "ü",
        "-",
        "\x85",
        "\udcff",
        "_crop",
        ".mp4",
        ".wav",
    ]
    made = set()
    for _ in range(60):
        parts = "".join(draw.choices(letters, k=draw.randint(1, 7))).split("/")
        parts = [p for p in parts if p and not p.startswith(".")]
        path = tmp_path.joinpath(*parts or ["z"])
        path = path.with_name(path.name + draw.choice([".mp4", ".avi"]))
        if not path.name.endswith("_crop.mp4"):
            made.add(touch(path))
    assert {c.video for c in by_id("folder", tmp_path).values()} == made


def test_parts_of_ids() -> None:
    names = ("bbaf2n", ".", "..", "a/b", "a%2Fb")
    assert [safe_part(name) for name in names] == ["bbaf2n", "%2E", "%2E.", "a%2Fb", "a%252Fb"]
    assert safe_folder("a.wav") == "a%2Ewav"
    assert len({safe_part("x" * n) for n in range(190, 300)}) == 110


def test_links_pipes_and_loops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = touch(tmp_path / "b" / "1.mp4")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "gone.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "c" / "self.mp4").symlink_to(tmp_path / "c" / "self.mp4")
    (tmp_path / "c" / "linked.mp4").symlink_to(real)
    os.mkfifo(tmp_path / "c" / "pipe.mp4")
    (tmp_path / "c" / "folder.mp4").mkdir()
    assert list(by_id("folder", tmp_path)) == [
        "clips/a/1",  # and not again as b/1
        "clips/c/gone",  # a broken link is a clip that can't be read, not one that isn't there
        "clips/c/linked",
        "clips/c/self",
    ]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dataset", ["grid", "crema", "vox", "lrs"])
def test_junk_between_the_clips_changes_nothing(dataset: str, tmp_path: Path) -> None:
    TREES[dataset](tmp_path, 6, seconds=0.2)
    expected = list(find_clips(dataset, tmp_path))
    for folder in {p.parent for p in tmp_path.rglob("*") if p.is_file()} - {tmp_path}:
        touch(folder / "Thumbs.db")
        touch(folder / "._x.mp4")
        (folder / "loop").symlink_to(tmp_path)
        (folder / "gone").symlink_to(tmp_path / "nowhere")
        touch(folder / "deep" / "er" / "x.txt")
    for name in ("x" * 250, "readme.txt"):
        touch(tmp_path / name)
    assert list(find_clips(dataset, tmp_path)) == expected


def test_names_so_long_that_no_sibling_can_be_called_alike(tmp_path: Path) -> None:
    touch(tmp_path / "s1" / ("x" * 251 + ".mpg"))
    touch(tmp_path / "VideoFlash" / ("x" * 251 + ".flv"))
    touch(tmp_path / "test" / "id" / ("x" * 251 + ".mp4"))
    for dataset in ("grid", "crema", "lrs"):
        assert len(by_id(dataset, tmp_path)) == 1


def test_a_folder_that_may_not_be_read_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_lrs_tree(tmp_path, 3, seconds=0.2)
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if "yT_test" in str(path):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(walk.os, "scandir", refusing)
    assert len(list(find_clips("lrs", tmp_path))) == 2
    assert "yT_test_000: cannot be read (Permission denied)" in capsys.readouterr().err


@pytest.mark.parametrize("dataset", [*LAYOUTS])
def test_what_is_not_there_is_said(dataset: str, tmp_path: Path) -> None:
    touch(tmp_path / "photos" / "a.jpg")
    touch(tmp_path / "s1.zip")
    with pytest.raises(UserError) as error:
        find_clips(dataset, tmp_path)
    message = str(error.value)
    assert message.startswith(f"--dataroot {tmp_path}: no ")
    if dataset != "pack":
        assert "found folder photos, file s1.zip; unpack the archives first; give " in message


def test_a_layout_next_door_is_pointed_out(tmp_path: Path) -> None:
    root = tmp_path / "grid"
    (video,) = make_grid_tree(root, 1, seconds=0.2)
    for wrong in (tmp_path, video.parent):
        with pytest.raises(UserError, match=f"they are in {root}: give that$"):
            find_clips("grid", wrong)


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="--dataset_name mead: unknown; choose one of vox, lrs, grid, crema, folder"
    ):
        find_clips("mead", tmp_path)
    with pytest.raises(
        UserError, match=r"--dataroot .*/nope: no such folder; GRID clips .* are needed; give the"
    ):
        find_clips("grid", tmp_path / "nope")
    with pytest.raises(UserError, match=r"a\.mp4: is a file; clips .* are needed"):
        find_clips("folder", touch(tmp_path / "a.mp4"))
