"""The run: whatever happens on the way, every clip is done once, and the folder is the same to the byte."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import raw_stand_in
from raw_stand_in import Program, StandInGates, StandInSettings, contents, process_of, raw_clips, write_raw

from data.clip_index import JOURNAL, merge_journal, read_index
from data.contract import INDEX, SKIPPED, RawClip
from data.preprocessing.output_folder import LOCK
from data.preprocessing.run import RunPlan, prepare_clips
from data.preprocessing.summary import SUMMARY, Summary
from data.preprocessing.worker_pool import Failure, IsolatedWorker, WorkerPool
from util.errors import UserError

DEFAULT = StandInSettings()
GOOD = {f"s{i % 3 + 1}/c{i:02d}": "good" for i in range(9)}
SLOW = {f"s{i % 3 + 1}/c{i:02d}": "slowly" for i in range(40)} | {
    "s1/dark": "dark 3",
    "s2/bad": "bad cut off",
}


def run(raw: Path, out: Path, settings: StandInSettings = DEFAULT, **plan: object) -> Summary:
    plan = RunPlan(**{"n_processes": 0, **plan})
    return prepare_clips(raw_clips(raw), out, raw, settings, None, plan, raw_stand_in.prepare)


def stamps(out: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in out.rglob("*")}


def skipped(out: Path) -> dict[str, tuple[str, str]]:
    lines = map(json.loads, (out / SKIPPED).read_text().splitlines())
    return {line["id"]: (line["reason"], line["detail"]) for line in lines}


def test_bad_clips_cost_themselves_only(tmp_path):
    bad = {
        "s1/exit": ("exit", "crashed", "its process ended by exit status 7"),
        "s1/killed": ("killed", "crashed", "its process ended by signal 9 (SIGKILL)"),
        "s2/fault": ("segfault", "crashed", "its process ended by signal 11 (SIGSEGV)"),
        "s2/hang": ("hang", "timeout", "took longer than 1 s"),
        "s3/mistake": ("mistake", "crashed", "ValueError: a mistake of ours"),
        "s3/bad": ("bad cut off", "unreadable", "cut off"),
        "s3/dark": ("dark 3 of 30", "too_dark", "3 of 30"),
    }
    raw = write_raw(tmp_path / "raw", GOOD | {"s1/once": "once"} | {i: line for i, (line, *_) in bad.items()})
    summary = run(raw, tmp_path / "out", n_processes=2, timeout_s=1)
    assert [r.id for r in read_index(tmp_path / "out")] == sorted([*GOOD, "s1/once"])  # once: tried again
    assert skipped(tmp_path / "out") == {i: (reason, detail) for i, (_, reason, detail) in bad.items()}
    assert summary.kept == 10
    assert summary.skipped == {"crashed": 4, "timeout": 1, "too_dark": 1, "unreadable": 1}
    assert summary.n_broken == 6
    assert summary.splits["train"].clips == 4
    assert summary.splits["test"].speakers == 2
    left = {p.name for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert not [
        n for n in left if n.startswith(".") or n.split("_")[0] in ("exit", "killed", "fault", "hang")
    ]
    table = summary.table()
    for words in ("kept", "crashed                  4", "6 of them broken", "frames/s"):
        assert words in table
    saved = json.loads((tmp_path / "out" / SUMMARY).read_text())
    assert (saved["kept"], saved["broken"], saved["skipped"]["timeout"]) == (10, 6, 1)


def test_the_number_of_processes_changes_nothing(tmp_path):
    raw = write_raw(tmp_path / "raw", GOOD | {"s1/bad": "bad cut off"})
    for n in (0, 1, 2):
        run(raw, tmp_path / str(n), n_processes=n)
    assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "2")
    assert len(contents(tmp_path / "0")) == 9 * 7 + 4


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_killed_three_times_the_folder_is_as_if_undisturbed(tmp_path):
    raw, out = write_raw(tmp_path / "raw", SLOW), tmp_path / "out"
    parts = 0
    for _ in range(3):
        program = Program.of_stand_in(raw, out)
        program.wait_for_clips(6)
        assert any("spawn_main" in line for line in program.survivors(0))  # it can see the workers
        program.process.kill()
        program.finish()
        assert not program.survivors()
        parts += len(list(out.rglob(".part-*")))
        assert (out / LOCK).exists()
    assert parts, "nothing was cut off in mid-work: the test is too easy"
    program = Program.of_stand_in(raw, out)
    status, printed, _ = program.finish()
    assert status == 0
    assert not program.survivors()
    assert int(printed.split("skipped, ")[1].split()[0]) >= 18  # were done before
    run(raw, tmp_path / "undisturbed")
    assert contents(out) == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_finishes_what_is_under_way_and_goes_on_later(tmp_path, number):
    raw, out = write_raw(tmp_path / "raw", SLOW), tmp_path / "out"
    program = Program.of_stand_in(raw, out)
    program.wait_for_clips(5)
    os.killpg(program.process.pid, number)  # as a terminal or a scheduler does it: the workers hear it too
    status, _, errors = program.finish()
    assert status == 130
    assert "Traceback" not in errors
    assert 5 <= len(read_index(out)) + len(skipped(out)) < len(SLOW)
    assert not [p for p in out.rglob(".*") if p.is_file()]
    assert "crashed" not in (out / SKIPPED).read_text()
    run(raw, out)
    run(raw, tmp_path / "undisturbed")
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_two_runs_into_one_folder_refuse_each_other(tmp_path):
    raw, out = write_raw(tmp_path / "raw", SLOW), tmp_path / "out"
    program = Program.of_stand_in(raw, out)
    program.wait_for_clips(1)
    with pytest.raises(UserError, match="another run is writing there"):
        run(raw, out)
    program.process.kill()
    program.finish()
    assert run(raw, out).kept == 40


def test_a_second_run_does_nothing(tmp_path):
    raw, out = write_raw(tmp_path / "raw", GOOD | {"s1/bad": "bad", "s1/dark": "dark"}), tmp_path / "out"
    run(raw, out)
    before = stamps(out)
    start = time.monotonic()
    summary = run(raw, out, n_processes=2)
    assert time.monotonic() - start < 0.5  # no process was started
    assert stamps(out) == before
    assert (summary.kept, summary.run.kept, summary.run.found_done) == (9, 0, 11)


def test_only_what_changed_is_done_again(tmp_path):
    raw, out = write_raw(tmp_path / "raw", GOOD | {"s1/bad": "bad", "s1/dark": "dark"}), tmp_path / "out"
    run(raw, out)
    (out / "align").mkdir()
    (out / "s1/c00_rt.npy").unlink()
    (out / "s1/c03_crop.mp4").write_bytes(b"")
    (out / "audio/s1/c06.wav").unlink()
    (raw / "s1/bad.txt").write_text("good again")  # its size is another
    (raw / "s1/dark.txt").write_text("good")  # the same size: it isn't looked at
    (raw / "s2/c01.txt").unlink()  # what has vanished stays
    (raw / "s2/c04.txt").write_text("bad now")
    summary = run(raw, out)
    assert (summary.run.kept, summary.run.skipped, summary.run.found_done) == (4, 1, 5)
    assert skipped(out) == {"s1/dark": ("too_dark", ""), "s2/c04": ("unreadable", "now")}
    assert "s2/c01" in {r.id for r in read_index(out)}
    assert not list((out / "s2").glob("c04*"))
    assert run(raw, out, retry_skipped=True).skipped == {"unreadable": 1}


def test_no_more_clips_are_taken_than_processes_are_free(tmp_path):
    raw = write_raw(tmp_path / "raw", GOOD)
    taken, ahead = 0, []

    def clips() -> Iterator[RawClip]:
        nonlocal taken
        for clip in raw_clips(raw):
            taken += 1
            yield clip

    out = tmp_path / "out"
    stopping = lambda: ahead.append(taken - Program.lines(out))  # noqa: E731  asked before clips are taken
    plan = RunPlan(2, stopping=stopping)
    assert prepare_clips(clips(), out, raw, StandInSettings(), None, plan, raw_stand_in.prepare).kept == 9
    assert max(ahead) <= 3  # one per process, and the first, which is looked at


def test_a_full_disk_ends_the_run_and_keeps_what_is_done(tmp_path):
    raw, out = write_raw(tmp_path / "raw", GOOD | {"s2/c00": "full"}), tmp_path / "out"
    with pytest.raises(UserError, match="no space is left there"):
        run(raw, out, n_processes=1)
    assert [r.id for r in read_index(out)] == ["s1/c00", "s1/c03", "s1/c06"]
    assert not (out / JOURNAL).exists()
    (raw / "s2/c00.txt").write_text("good")
    assert run(raw, out).kept == 10


def test_other_settings_are_refused(tmp_path):
    raw, out = write_raw(tmp_path / "raw", GOOD), tmp_path / "out"
    run(raw, out)
    with pytest.raises(UserError, match=r"--size 128: .* was made with --size 256; .*another --out"):
        run(raw, out, StandInSettings(size=128))
    with pytest.raises(UserError, match=r"--min_face 50: .* was made with --min_face 40"):
        run(raw, out, StandInSettings(gates=StandInGates(50)))
    (out / "preprocess.json").write_text("{")
    with pytest.raises(UserError, match=r"preprocess\.json: damaged"):
        run(raw, out)


def test_folders_that_are_not_ours_are_refused(tmp_path):
    raw = write_raw(tmp_path / "raw", GOOD)
    for out, found in (
        (raw, "is --dataroot"),
        (raw / "prepared", "lies inside --dataroot"),
        (tmp_path, "holds --dataroot"),
    ):
        with pytest.raises(UserError, match=rf"--out .*: {found}"):
            run(raw, out)
    link = tmp_path / "link"
    link.symlink_to(raw)
    with pytest.raises(UserError, match="is --dataroot"):
        run(raw, link)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").touch()
    with pytest.raises(UserError, match=r"holds other files \(me.jpg\) and no preprocess.json"):
        run(raw, tmp_path / "photos")
    with pytest.raises(UserError, match="no clips were found"):
        run(tmp_path / "photos", tmp_path / "out")
    assert stamps(raw).keys() == {*(raw / f"s{i}" for i in (1, 2, 3)), *(raw / f"{n}.txt" for n in GOOD)}


def test_a_torn_line_of_the_journal_is_dropped(tmp_path):
    raw, out = write_raw(tmp_path / "raw", GOOD | {"s1/bad": "bad"}), tmp_path / "out"
    run(raw, out)
    whole = contents(out)
    lines = (out / INDEX).read_bytes().splitlines(keepends=True)
    (out / JOURNAL).write_bytes(
        lines[4] + b"\x00\x00\n" + lines[2][:-9]
    )  # as kill -9 or a power cut leaves it
    (out / INDEX).write_bytes(b"".join(lines[:2]))
    summary = run(raw, out)
    assert (summary.run.kept, summary.run.found_done) == (6, 4)
    assert contents(out) == whole


def test_being_killed_between_the_two_index_files_loses_nothing(tmp_path):
    raw, out = write_raw(tmp_path / "raw", {"s1/a": "bad", "s1/b": "good"}), tmp_path / "out"
    run(raw, out)
    kept = (out / INDEX).read_text().replace("s1/b", "s1/a")
    (out / JOURNAL).write_text(kept)
    (out / INDEX).write_text(kept + (out / INDEX).read_text())  # the first is new, the second is not
    merge_journal(out)
    assert [r.id for r in read_index(out)] == ["s1/a", "s1/b"]
    assert skipped(out) == {}


def test_a_damaged_index_is_told_with_its_line(tmp_path):
    raw, out = write_raw(tmp_path / "raw", GOOD), tmp_path / "out"
    run(raw, out)
    whole = contents(out)
    lines = (out / INDEX).read_text().splitlines(keepends=True)
    for damage in ("{}\n", "garbage\n", "[1]\n", lines[1].replace('"s1/c03"', "7", 1), lines[1][:-1]):
        (out / INDEX).write_text("".join([lines[0], damage]))
        for reader in (lambda: run(raw, out), lambda: read_index(out)):
            with pytest.raises(
                UserError, match=r"clips.jsonl, line 2: damaged.* delete that line \(sed -i 2d"
            ):
                reader()
    (out / INDEX).write_text(lines[0])  # as advised
    run(raw, out)
    assert contents(out) == whole
    with pytest.raises(UserError, match=r"no clips\.jsonl there"):
        read_index(raw)


class Unloadable:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple:
        return os._exit, (3,)


def test_processes_that_never_come_up_are_told_of(monkeypatch):
    pool = WorkerPool(Unloadable(), 2)
    with pytest.raises(UserError, match=r"--nThreads 2: worker processes don't come up .*exit status 3"):
        list(pool.results(["a", "b", "c"]))
    pool.close()


def test_a_worker_uses_one_thread_and_is_gone_when_closed():
    pool = WorkerPool(os.getenv, 1)
    assert list(pool.results(["OMP_NUM_THREADS"])) == [("OMP_NUM_THREADS", "1")]
    worker: IsolatedWorker = pool._workers[0]
    pool.close()
    assert not worker.alive


def test_a_worker_is_replaced_before_leaks_add_up(monkeypatch):
    monkeypatch.setattr("data.preprocessing.worker_pool.TASKS_PER_PROCESS", 2)
    pool = WorkerPool(process_of, 1)
    first, second, third, fourth, fifth = (pid for _, pid in pool.results(range(1, 6)))
    assert first == second != third == fourth != fifth
    pool.close()


def test_an_idle_worker_that_was_killed_costs_nothing():
    pool = WorkerPool(str, 1)

    def tasks() -> Iterator[int]:
        yield 1
        pool._workers[0]._process.kill()
        pool._workers[0]._process.join()
        yield 2

    assert list(pool.results(tasks())) == [(1, "1"), (2, "2")]
    assert list(pool.results([object])) == [(object, "<class 'object'>")]
    pool.close()


def test_a_failure_says_whether_its_process_died():
    pool = WorkerPool(os._exit, 1)
    assert list(pool.results([4])) == [
        (4, Failure("crashed", "its process ended by exit status 4", died=True))
    ]
    pool.close()
