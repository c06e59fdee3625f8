"""Files that are whole or not there."""

from __future__ import annotations

import errno
import shutil

import pytest

from util.errors import UserError
from util.files import atomic_path, check_file, results_folder


def test_atomic_path_shows_the_file_only_when_whole(tmp_path):
    path = tmp_path / "new" / "ein Bild's ü.txt"
    with atomic_path(path) as part:
        part.write_text("whole")
        assert part.parent == path.parent
        assert part.suffix == ".txt"
        assert not path.exists()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_text() == "whole"


def fail_in_the_middle(path, failure):
    with atomic_path(path) as part:
        part.write_text("half")
        raise failure


@pytest.mark.parametrize("failure", [ValueError("x"), KeyboardInterrupt()])
def test_atomic_path_leaves_nothing_after_a_failure(tmp_path, failure):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(type(failure)):
        fail_in_the_middle(path, failure)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "before"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no space is left there; free some, or choose another folder with --results_dir"),
        (
            errno.EROFS,
            "cannot be written to (read-only file system); choose another folder with --results_dir",
        ),
        (errno.EACCES, "cannot be written to (permission denied)"),
    ],
)
def test_atomic_path_names_the_folder_that_is_full_or_locked(tmp_path, code, words):
    with pytest.raises(UserError) as caught:
        fail_in_the_middle(tmp_path / "a.txt", OSError(code, "told by the system"))
    assert str(caught.value).startswith(f"{tmp_path}: {words}")
    assert not list(tmp_path.iterdir())


def test_atomic_path_leaves_other_files_troubles_alone(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        (tmp_path / "missing").read_text()


def test_atomic_path_refuses_a_folder_in_the_way(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(UserError, match=r"a\.txt: is a folder"), atomic_path(tmp_path / "a.txt") as part:
        part.write_text("x")


def test_results_folder_is_made_and_left_empty(tmp_path):
    folder = results_folder(tmp_path / "a" / "b c")
    assert folder.is_dir()
    assert not list(folder.iterdir())


def test_results_folder_refuses_a_file_and_a_path_through_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"--results_dir .*file: is a file; a folder is needed"):
        results_folder(tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot be written to \(not a directory\); choose another folder"):
        results_folder(tmp_path / "file" / "sub")


def test_results_folder_refuses_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 123_000))
    with pytest.raises(UserError, match=r"only 0\.1 MB are free there, 20 MB are needed; free some"):
        results_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.mp4", "no such file; a clip is needed; check the spelling"),
        ("folder", "is a folder; a clip is needed; give the file itself"),
        ("empty.mp4", "the file is empty (0 bytes); a clip is needed; copy it again"),
        ("n" * 300, "cannot be read (File name too long)"),
    ],
)
def test_check_file_says_what_is_wrong(tmp_path, name, words):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(UserError) as caught:
        check_file(tmp_path / name, "--tgt_video_path", "a clip")
    assert str(caught.value).startswith(f"--tgt_video_path {tmp_path / name}: {words}")
