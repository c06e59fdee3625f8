"""Where each data set keeps its clips: every true layout, made up and real."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

from data.contract import DATASET_NAMES, RawClip, clip_paths
from data.layouts import LAYOUTS, find_clips
from data.layouts.crema import SENTENCES
from data.layouts.folder import in_test
from data.layouts.grid import spoken as grid_spoken
from data.layouts.lrs3 import spoken as lrs_spoken
from data.layouts.walk import Layout
from data.pack import read_manifest
from tests import raw_trees
from tests.layout_checks import TREES, by_id, touch
from tests.raw_trees import (
    grid_name,
    grid_text,
    make_crema_tree,
    make_grid_tree,
    make_lrs_tree,
    make_vox_tree,
)
from util.types import EMOTIONS


def test_every_dataset_has_a_layout() -> None:
    assert set(LAYOUTS) == {*DATASET_NAMES, "pack"}
    assert all(isinstance(import_module(module).LAYOUT, Layout) for module in LAYOUTS.values())


VARIANTS = ["flat", "mpg_vcd", "mpg_6000", "frames", "frames_6000"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("align", ["speaker", "top", "beside", "zenodo"])
def test_grid_variants(variant: str, align: str, tmp_path: Path) -> None:
    made = make_grid_tree(tmp_path, 3, variant, align=align, seconds=0.4)
    clips = by_id("grid", tmp_path)
    assert list(clips) == sorted(f"align/{'s1s3'[k % 2 * 2 :][:2]}/{grid_name(k)}" for k in range(3))
    first = clips[f"align/s1/{grid_name(0)}"]
    assert first == RawClip(
        id="align/s1/bbaaza",
        video=made[0],
        audio=None,
        audio_id="audio/s1/bbaaza.wav",
        dataset="grid",
        speaker="s1",
        split="test",
        text="bin blue at a zero again",
    )
    assert clips[f"align/s3/{grid_name(1)}"].text == grid_text(grid_name(1))
    assert clips[f"align/s3/{grid_name(1)}"].split == "train"


@pytest.mark.parametrize("wav", ["speaker", "top", "beside"])
@pytest.mark.parametrize("variant", ["flat", "frames"])
def test_grid_pictures_take_the_wav_and_videos_their_own_sound(
    variant: str, wav: str, tmp_path: Path
) -> None:
    make_grid_tree(tmp_path, 1, variant, wav=wav, seconds=0.4)
    (clip,) = find_clips("grid", tmp_path)
    assert clip.audio == (None if variant == "flat" else next(tmp_path.rglob("*.wav")))


def test_grid_wav_that_was_cut_to_the_speech_is_not_taken_for_pictures(tmp_path: Path) -> None:
    make_grid_tree(tmp_path, 1, "frames", seconds=1.0)
    touch(tmp_path / "audio" / "s1" / "bbaaza.wav", raw_trees.wav_bytes(0.4, rate=25_000))
    (clip,) = find_clips("grid", tmp_path)
    assert clip.audio is None
    assert clip.facts == {"unused_sound": "0.4 s for 1.0 s of pictures"}


def test_grid_takes_the_best_of_many_copies_once(tmp_path: Path) -> None:
    made = {v: make_grid_tree(tmp_path, 1, v, seconds=0.2)[0] for v in VARIANTS}
    for variant in ("mpg_6000", "flat", "mpg_vcd"):
        assert [c.video for c in find_clips("grid", tmp_path)] == [made[variant]]
        made[variant].unlink()
    (clip,) = find_clips("grid", tmp_path)
    assert clip.video.is_dir()


def test_grid_test_speakers_are_those_of_lipnet(tmp_path: Path) -> None:
    for k in (*range(1, 35), 101):
        touch(tmp_path / f"s{k}" / "bbaf2n.mpg")
    touch(tmp_path / "speakers" / "bbaf2n.mpg")
    clips = by_id("grid", tmp_path).values()
    assert len(clips) == 35
    assert {c.speaker for c in clips if c.split == "test"} == {"s1", "s2", "s20", "s22"}


def test_grid_align_is_read_tolerantly() -> None:
    assert grid_spoken("0 23750 sil\r\n23750 29500 BIN\n29500 30000 sp\n\nnonsense\n30000 x red\n") == "bin"


def test_crema(tmp_path: Path) -> None:
    made = make_crema_tree(tmp_path, 30)
    (tmp_path / "AudioWAV" / f"{made[1].stem}.wav").unlink()
    clips = by_id("crema", tmp_path)
    assert clips["VideoFlash/1001_IEO_NEU_XX"] == RawClip(
        id="VideoFlash/1001_IEO_NEU_XX",
        video=made[0],
        audio=tmp_path / "AudioWAV" / "1001_IEO_NEU_XX.wav",
        audio_id="AudioWAV/1001_IEO_NEU_XX.wav",
        dataset="crema",
        speaker="1001",
        split="train",
        emotion="neutral",
        text="it's eleven o'clock",
        facts={"age": "21", "sex": "male", "race": "Asian", "ethnicity": "Not Hispanic"},
    )
    other = clips["VideoFlash/1080_IEO_HAP_MD"]
    assert (other.emotion, other.intensity, other.split) == ("happy", "medium", "test")
    assert clips["VideoFlash/1080_IEO_NEU_XX"].audio is None
    assert len(clips) == 30


@pytest.mark.parametrize(
    ("actor", "split"), [(1001, "train"), (1073, "train"), (1074, "test"), (1091, "test")]
)
def test_crema_split_is_by_the_actor(actor: int, split: str, tmp_path: Path) -> None:
    touch(tmp_path / "VideoFlash" / f"{actor}_IEO_NEU_XX.flv")
    assert [c.split for c in find_clips("crema", tmp_path)] == [split]


def test_crema_names_that_break_the_pattern_tell_what_they_can(tmp_path: Path) -> None:
    for name in ("1040_ITH_SAD_X", "1074", "intro", "1002_ieo_ang_hi", "²_a"):
        touch(tmp_path / "VideoFlash" / f"{name}.flv")
    touch(tmp_path / "VideoFlash" / "1001_IEO_NEU_XX_crop.mp4")
    clips = by_id("crema", tmp_path)
    assert len(clips) == 5
    sad = clips["VideoFlash/1040_ITH_SAD_X"]
    assert (sad.emotion, sad.intensity, sad.text) == ("sad", "", SENTENCES["ITH"])
    assert (clips["VideoFlash/1074"].speaker, clips["VideoFlash/1074"].split) == ("1074", "test")
    assert clips["VideoFlash/intro"].emotion == ""
    assert clips["VideoFlash/1002_ieo_ang_hi"].intensity == "high"


@pytest.mark.parametrize("table", [b"\xff\xfe\x00", b"", b"Actor,Age\n1001,20\n", b'"ActorID","Age"\n"1001'])
def test_a_damaged_table_costs_its_facts_only(table: bytes, tmp_path: Path) -> None:
    make_crema_tree(tmp_path, 2, seconds=0.2)
    (tmp_path / "VideoDemographics.csv").write_bytes(table)
    assert [c.facts for c in find_clips("crema", tmp_path)] == [{}, {}]


def test_crema_real_names(pack: Path, tmp_path: Path) -> None:
    shutil.copy(pack / "meta_crema" / "VideoDemographics.csv", tmp_path)
    rows = (pack / "meta_crema" / "SentenceFilenames.csv").read_text().splitlines()[1:]
    (tmp_path / "VideoFlash").mkdir()
    for row in rows:
        os.mknod(f"{tmp_path}/VideoFlash/{row.split(',')[1].strip(chr(34))}.flv")
    clips = list(by_id("crema", tmp_path).values())
    assert len(clips) == 7442
    assert len({c.speaker for c in clips if c.split == "train"}) == 73
    assert len({c.speaker for c in clips if c.split == "test"}) == 18
    assert Counter(c.emotion for c in clips)["neutral"] == 1087
    assert Counter(c.intensity for c in clips) == {"": 7442 - 3 * 455, "low": 455, "medium": 455, "high": 455}
    assert all(c.emotion in EMOTIONS and c.text and len(c.facts) == 4 for c in clips)


def test_vox(tmp_path: Path) -> None:
    made = make_vox_tree(tmp_path, 6, seconds=0.2)
    clips = by_id("vox", tmp_path)
    assert clips["unzip/dev_video/id00012/-vid_000/00001"] == RawClip(
        id="unzip/dev_video/id00012/-vid_000/00001",
        video=made[0],
        audio=tmp_path / "dev/aac/id00012/-vid_000/00001.m4a",
        audio_id="unzip/dev_audio/id00012/-vid_000/00001.wav",
        dataset="vox",
        speaker="id00012",
        split="train",
        facts={"sex": "male"},
    )
    assert {c.split for id_, c in clips.items() if id_.startswith("unzip/test_video/id05012/")} == {"test"}
    assert len(clips) == 6


def test_vox_without_sound_and_table(tmp_path: Path) -> None:
    make_vox_tree(tmp_path, 2, aac=False, table=False, seconds=0.2)
    assert [(c.audio, c.facts) for c in find_clips("vox", tmp_path)] == [(None, {}), (None, {})]


@pytest.mark.parametrize(
    ("name", "beside", "table", "part"),
    [
        ("vox2_test_mp4", "", "", "test"),
        ("test", "", "dev", "test"),
        ("contest", "", "", "dev"),
        ("raw", "", "", "dev"),
        ("raw", "", "test", "test"),
        ("raw", "dev", "", "test"),
        ("raw", "test", "", "dev"),
    ],
)
def test_vox_archives_unpacked_without_a_folder(
    name: str, beside: str, table: str, part: str, tmp_path: Path
) -> None:
    root = tmp_path / name
    touch(root / "mp4" / "id00017" / "v" / "00001.mp4")
    sound = touch(root / "aac" / "id00017" / "v" / "00001.m4a")
    if beside:
        touch(root / beside / "mp4" / "id00012" / "v" / "00001.mp4")
    if table:
        touch(root / "vox2_meta.csv", f"VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \nid17 ,n ,f ,dev\n"
              f"id00017 ,n000017 ,f ,{table} \n".encode())  # fmt: skip
    clip = by_id("vox", root)[f"unzip/{part}_video/id00017/v/00001"]
    assert clip.audio == sound
    assert clip.split == {"dev": "train", "test": "test"}[part]


def test_vox_of_a_part_that_is_there_twice_one_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("dev/mp4", "test/mp4", "mp4"):
        touch(tmp_path / place / "id00012" / "v" / "00001.mp4")
    assert list(by_id("vox", tmp_path)) == [
        "unzip/dev_video/id00012/v/00001",
        "unzip/test_video/id00012/v/00001",
    ]
    assert "mp4: left out; the dev part is taken from" in capsys.readouterr().err


def test_lrs(tmp_path: Path) -> None:
    made = make_lrs_tree(tmp_path, seconds=0.2)
    made[1].with_suffix(".txt").unlink()
    clips = list(by_id("lrs", tmp_path).values())
    assert clips[0] == RawClip(
        id="pretrain/yT_pretrain_000/00001",
        video=made[0],
        audio=None,
        audio_id="audio/pretrain/yT_pretrain_000/00001.wav",
        dataset="lrs",
        speaker="yT_pretrain_000",
        split="train",
        text="it's good",
    )
    assert [c.split for c in clips] == ["train", "test", "train"]
    assert [c.text for c in clips] == ["it's good", "it's good", ""]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Text:  HELLO WORLD\nConf:   5\n", "hello world"),
        ("\r\n text : HELLO {NS}  WORLD\r\n", "hello world"),
        ("Conf: 5\nWORD START END\nTEXT 0 1\n", ""),
        ("Text:\nConf: 5", ""),
        ("", ""),
    ],
)
def test_lrs_transcripts(text: str, words: str) -> None:
    assert lrs_spoken(text) == words


def test_a_damaged_text_costs_the_words_only(tmp_path: Path) -> None:
    (video,) = make_lrs_tree(tmp_path, 1, seconds=0.2)
    for content, text in ((b"Text: \xff\xfe", ""), (b"\xef\xbb\xbfText: HI", "hi"), (None, "")):
        path = video.with_suffix(".txt")
        path.unlink()
        path.mkdir() if content is None else path.write_bytes(content)
        assert [c.text for c in find_clips("lrs", tmp_path)] == [text]


def test_folder(tmp_path: Path) -> None:
    for name in ("b/x/1.mp4", "b/2.MOV", "c.mpeg", "notes.txt", ".hidden/1.mp4", "b/.1.mp4", "b/2_crop.mp4"):
        touch(tmp_path / name)
    clips = by_id("folder", tmp_path)
    assert [(c.id, c.speaker, c.audio_id) for c in clips.values()] == [
        ("clips/b/2", "b", "audio/b/2.wav"),
        ("clips/b/x/1", "b", "audio/b/x/1.wav"),
        ("clips/c", "c", "audio/c.wav"),
    ]


def test_folder_leaves_out_what_preprocessing_made(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    for dataset in ("vox", "grid"):
        for path in vars(clip_paths(tmp_path, "made", dataset)).values():
            touch(path)
    touch(tmp_path / "b__crop.mp4")
    assert list(by_id("folder", tmp_path)) == ["clips/a"]


def test_folder_clips_that_differ_in_suffix_only_have_ids_of_their_own(tmp_path: Path) -> None:
    names = ["a.mp4", "a.avi", "a.mp4.avi", "a.avi.mp4", "b.mp4"]
    for name in names:
        touch(tmp_path / name)
    clips = by_id("folder", tmp_path)
    assert sorted(c.video.name for c in clips.values()) == sorted(names)
    assert clips["clips/b"].video.name == "b.mp4"


@pytest.mark.parametrize("n", [9, 10, 200])
def test_folder_split_is_by_speaker_and_leaves_small_sets_whole(n: int, tmp_path: Path) -> None:
    speakers = [f"p{k}" for k in range(30, 30 + n)]
    assert in_test("p34")
    for speaker in speakers:
        touch(tmp_path / speaker / "1.mp4")
        touch(tmp_path / speaker / "deep" / "2.mp4")
    touch(tmp_path / "empty" / "notes.txt")
    clips = by_id("folder", tmp_path).values()
    in_test_split = {c.speaker for c in clips if c.split == "test"}
    assert in_test_split == {s for s in speakers if n >= 10 and in_test(s)}
    assert not in_test_split & {c.speaker for c in clips if c.split == "train"}
    assert n < 200 or 8 <= len(in_test_split) <= 35


def test_pack(pack: Path) -> None:
    clips = by_id("pack", pack)
    rows = {r.id: r for r in read_manifest(pack) if r.kind == "clip" and not r.is_raw_take}
    assert {id_.removeprefix("clips/") for id_ in clips} == set(rows)
    clip = clips["clips/mead256_M030_surprised_L3"]
    row = rows["mead256_M030_surprised_L3"]
    assert (clip.emotion, clip.intensity, clip.dataset) == ("surprise", "high", "folder")
    assert (clip.speaker, clip.split, clip.video) == (row.identity, row.split, row.path)
    assert clip.redistributable == row.redistributable
    assert {c.split for c in clips.values()} == {"train", "dev"}
    assert all(c.video.is_file() and c.emotion in (*EMOTIONS, "") for c in clips.values())


def test_real_grid_and_lrs(pack: Path) -> None:
    grid = by_id("grid", pack / "raw_grid")
    assert grid["align/s1/bbaf2n"].text == "bin blue at f two now"
    assert grid["align/s1/bbaf2n"].video == pack / "raw_grid" / "s1" / "bbaf2n.mpg"
    with_align = {p.stem for p in (pack / "raw_grid").rglob("*.align")}
    for clip in grid.values():
        assert len(clip.text.split()) == (6 if clip.video.stem in with_align else 0)
        assert not clip.text or clip.text == grid_text(clip.video.stem)
    assert len(grid) == len(list((pack / "raw_grid").rglob("*.mpg")))
    assert set(by_id("lrs", pack / "raw_lrs3")) == {"test/0Fi83BHQsMA/00002", "test/OzA6jRYjVQs/00004"}


def test_splits_share_no_speaker(tmp_path: Path) -> None:
    for dataset, make in TREES.items():
        make(tmp_path / dataset, 24, seconds=0.2)
        clips = list(find_clips(dataset, tmp_path / dataset))
        speakers = {split: {c.speaker for c in clips if c.split == split} for split in ("train", "test")}
        assert not speakers["train"] & speakers["test"]
