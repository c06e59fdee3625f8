"""The data page itself: everything is on it, as words, in one file; and the script that writes it."""

from __future__ import annotations

import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from data.contract import SkippedClip, clip_paths
from data.inspection.folder import prepared_folder
from data.inspection.measures import choose_clips
from data.inspection.page import PagePlan, write_page
from data.inspection.plots import dataset_plots
from data.shards import write_shards
from scripts import inspect_data
from tests.rocking_clips import HOSTILE, RECORDS, table, write_folder, write_index
from util.errors import UserError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def spoilt(prepared: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(prepared, tmp_path / "spoilt"))


def _page(root: Path, plan: PagePlan = PagePlan(), **where: str) -> tuple[str, list[str]]:  # noqa: B008
    path = root / "inspect" / "index.html"
    broken = write_page(prepared_folder(root, **where), plan, path)
    return path.read_text(encoding="utf-8"), broken


class _Reader(HTMLParser):
    """What a browser would see: tags with their attributes, and the words."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.words = [], ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def html(prepared: Path) -> str:
    text, broken = _page(prepared)
    assert broken == []
    return text


@pytest.fixture(scope="module")
def page(html: str) -> _Reader:
    return _Reader(html)


def test_every_clip_is_on_the_page(page: _Reader) -> None:
    for clip in RECORDS:
        assert clip.id in page.words, clip.id
        assert clip.text in page.words
    assert sum(tag == "article" for tag, _ in page.tags) == len(RECORDS)
    assert "most turned of 3: 44" in page.words


def test_names_are_words_and_not_html(page: _Reader) -> None:
    assert not {"script", "i", "iframe"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "luma <i>12</i>" in page.words
    assert "<b>s2</b>, test" in page.words
    assert '"static <b>"' in page.words


def test_page_needs_no_other_file(page: _Reader) -> None:
    sources = [a["src"] for _, a in page.tags if "src" in a]
    kinds = ["data:image/jpeg", "data:image/png", "data:image/svg+xml", "data:video/mp4"]
    assert [sum(s.startswith(kind) for s in sources) for kind in kinds] == [9, 6, 4, 3]
    assert sum(map(len, sources)) < 3e6
    assert all(s.startswith("data:") and len(s) > 1000 for s in sources)
    assert not any("href" in attributes for _, attributes in page.tags)


def test_same_seed_same_page_and_other_seeds_other_clips(prepared: Path, html: str) -> None:
    assert _page(prepared)[0] == html
    columns = table(100)
    draws = {tuple(k for _, k in choose_clips(columns, 5, seed)) for seed in range(5)}
    assert len(draws) == 5
    assert choose_clips(columns, 5, 1) == choose_clips(columns, 5, 1)


def test_broken_clips_are_shown_with_their_error(spoilt: Path) -> None:
    video = clip_paths(spoilt, "align/s1/a", "grid").video
    video.write_bytes(video.read_bytes()[:1000])
    clip_paths(spoilt, HOSTILE, "grid").front.write_bytes(b"\x93NUMPY junk")
    text, broken = _page(spoilt)
    page = _Reader(text)
    assert sorted(broken) == sorted(["align/s1/a", HOSTILE])
    assert page.words.count("Cannot be shown") == 2
    assert str(video) in page.words
    assert sum(tag == "article" for tag, _ in page.tags) == 3
    assert sum(tag == "video" for tag, _ in page.tags) == 1


def test_data_of_the_public_code(prepared: Path, tmp_path: Path) -> None:
    for id_ in ("align/s1/a", "align/s1/b"):
        for path in (p for p in vars(clip_paths(prepared, id_, "grid")).values() if p.is_file()):
            (tmp_path / "align/s1").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "align/s1")
    clip_paths(tmp_path, "align/s1/b", "grid").ani.unlink()
    (tmp_path / "audio/s1").mkdir(parents=True)
    shutil.copy(prepared / "audio/align/s1/a.wav", tmp_path / "audio/s1/a.wav")
    text, broken = _page(tmp_path, dataset_name="grid")
    assert broken == []
    page = _Reader(text)
    assert "2 clips, 0.0 minutes, 1 speaker" in page.words
    assert "the whole picture" in page.words  # of the clip without ani
    assert page.words.count("the clip has none") == 1
    with pytest.raises(
        UserError, match=r"not prepared, neither clips.jsonl nor a clip by --dataset_name vox"
    ):
        prepared_folder(tmp_path, "vox")


def test_shards(prepared: Path, tmp_path: Path) -> None:
    write_shards(prepared, tmp_path, clips_per_shard=2)
    folder = prepared_folder(tmp_path)
    assert sorted(r.id for r in folder.records) == sorted(r.id for r in RECORDS)
    text, broken = _page(tmp_path)
    assert broken == []
    assert "correlation 0.9" in _Reader(text).words  # so the sound was found
    assert len(prepared_folder(tmp_path, split="test").records) == 1


def test_plots_show_what_there_is() -> None:
    columns = table(40, lambda k: {"yaw": k / 2, "brightness": 80.0})
    plot = dataset_plots(columns, {"too_dark": 3, "$\\frac{<": 1})
    for words in (
        "clip length",
        "turned (yaw): median 9.75",
        "brightness of face: median 80 / 255",
        "clips per speaker",
        "split",
        "too_dark",
    ):
        assert words in plot, words
    assert "$\\frac{&lt;" in plot
    assert "face width" not in plot  # nothing is known of it
    assert "emotion" not in plot
    assert plot.count("fill: #2f8fd0") > 30  # bars
    assert plot == dataset_plots(columns, {"too_dark": 3, "$\\frac{<": 1})


def test_plots_of_one_clip_and_of_none() -> None:
    assert "clip length" in dataset_plots(table(1), {})
    assert "skipped because of" in dataset_plots(table(0), {"crashed": 2})


def test_folder_in_which_all_was_skipped(tmp_path: Path) -> None:
    write_index(tmp_path, [], [SkippedClip("a", "a", 1, "no_face", "nobody")])
    text, broken = _page(tmp_path)
    assert broken == []
    words = _Reader(text).words
    assert "a: nobody" in words
    assert "no clip was kept" in words


def test_script_writes_the_page(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    path = tmp_path / "deep" / "page.html"
    words = [prepared, "--clips", 1, "--split", "test", "--page", path]
    monkeypatch.setattr(sys, "argv", ["inspect_data.py", *map(str, words)])
    inspect_data.main()
    assert capsys.readouterr().out.startswith(f"{path}: ")
    assert HOSTILE in _Reader(path.read_text(encoding="utf-8")).words
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
