"""Raw clips that are a line of text, and a clip function that does what the line says: the run without the work.

As a program: python tests/raw_stand_in.py RAW OUT N_PROCESSES [ENGINE], as scripts/preprocess.py would run it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "tests")]  # as a program

from data.clip_index import JOURNAL  # noqa: E402
from data.contract import INDEX, SKIPPED, ClipRecord, RawClip, SkippedClip, clip_paths  # noqa: E402
from util.errors import UserError  # noqa: E402
from util.files import atomic_path  # noqa: E402


@dataclass(frozen=True)
class StandInGates:
    min_face: int = 40


@dataclass(frozen=True)
class StandInSettings:
    size: int = 256
    gates: StandInGates = StandInGates()


def write_raw(raw: Path, lines: dict[str, str]) -> Path:
    """A made-up tree: name to what becomes of the clip."""
    for name, line in lines.items():
        path = raw / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line)
    return raw


def raw_clips(raw: Path) -> Iterator[RawClip]:
    for path in sorted(raw.rglob("*.txt")):
        name = path.relative_to(raw).with_suffix("").as_posix()
        speaker = name.split("/")[0]
        yield RawClip(
            name, path, None, f"audio/{name}.wav", "grid", speaker, "train" if speaker < "s2" else "test"
        )


def prepare(
    clip: RawClip, out: Path, root: Path, settings: StandInSettings, tools: None
) -> ClipRecord | SkippedClip:
    source, size = clip.video.relative_to(root).as_posix(), clip.video.stat().st_size
    word, _, rest = clip.video.read_text().partition(" ")
    if word == "bad":
        return SkippedClip(clip.id, source, size, "unreadable", rest)
    if word == "dark":
        return SkippedClip(clip.id, source, size, "too_dark", rest)
    if word == "full":
        raise UserError(f"{out}: no space is left there; free some, or choose another folder with --out")
    if word == "mistake":
        raise ValueError("a mistake\nof ours")
    _write(clip, out, settings, word)
    return ClipRecord(
        clip.id, clip.dataset, clip.speaker, clip.split, 25 + size, 25, 3, clip.audio_id, source, size, 25.0
    )


def process_of(task: object) -> int:
    """The process that works on the task."""
    return os.getpid()


def _write(clip: RawClip, out: Path, settings: StandInSettings, word: str) -> None:
    paths = clip_paths(out, clip.id, clip.dataset)
    for path in (*vars(paths).values(), out / clip.audio_id):
        with atomic_path(path, "--out") as part:
            part.write_text(f"{clip.id} {path.name} {settings.size}")
            if path == paths.rt:  # in mid-work: a file is finished, another is begun
                _misbehave(word, clip, out)


def _misbehave(word: str, clip: RawClip, out: Path) -> None:
    if word == "exit":
        os._exit(7)
    if word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if word in ("hang", "slowly"):
        time.sleep(1000 if word == "hang" else 0.04)
    if word == "once" and not (mark := out.parent / f"{clip.video.stem}.tried").exists():
        mark.touch()
        os._exit(7)


class Program:
    """A run as a program of its own, which writes into `out`, and all that it starts."""

    def __init__(self, argv: Sequence[str | Path], out: Path) -> None:
        self.out, self.before, self._mark = out, self.lines(out), f"TEST_RUN={uuid.uuid4().hex}"
        env = os.environ | dict([self._mark.split("=")])
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        argv = [sys.executable, *map(str, argv)]
        self.process = subprocess.Popen(argv, env=env, cwd=REPO, start_new_session=True, **pipes)

    @classmethod
    def of_stand_in(cls, raw: Path, out: Path, *words: str) -> Program:
        """A run of this file: `words` are its further arguments."""
        return cls([__file__, raw, out, *(words or ("2",))], out)

    @staticmethod
    def lines(out: Path) -> int:
        """Clips that are done; while the journal is merged, a line is in two files."""
        lines = set()
        for path in (out / n for n in (INDEX, SKIPPED, JOURNAL)):
            with contextlib.suppress(FileNotFoundError):
                lines.update(path.read_bytes().splitlines())
        return len(lines)

    def wait_for_clips(self, n: int) -> None:
        end = time.monotonic() + 120
        while self.lines(self.out) < self.before + n:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end
            time.sleep(0.01)

    def finish(self) -> tuple[int, str, str]:
        """Exit status, stdout, stderr."""
        out, err = self.process.communicate(timeout=600)
        return self.process.returncode, out, err

    def survivors(self, patience_s: float = 5.0, but: str = "") -> list[str]:
        """What still runs of all that the program started, a moment after its end. but: a name that may."""
        end = time.monotonic() + patience_s
        while (found := [p for p in self._descendants() if not but or but not in p]) and (
            time.monotonic() < end
        ):
            time.sleep(0.05)
        return found

    def _descendants(self) -> Iterator[str]:
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self._mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    yield (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]


def contents(out: Path) -> dict[str, bytes]:
    """All files of a prepared folder, the summary without what differs from run to run."""
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    summary = json.loads(found["summary.json"])
    del summary["run"]
    return found | {"summary.json": json.dumps(summary).encode()}


def main() -> None:
    import raw_stand_in  # by its name, as other processes know it

    from data.preprocessing.run import RunPlan, prepare_clips
    from models.stop_request import StopRequest

    raw, out, n_processes, *engine = sys.argv[1:]
    with StopRequest() as stop:
        plan = RunPlan(int(n_processes), *engine, timeout_s=30, stopping=lambda: stop.made)
        clips = raw_stand_in.raw_clips(Path(raw))
        settings = raw_stand_in.StandInSettings()
        summary = prepare_clips(clips, Path(out), Path(raw), settings, None, plan, raw_stand_in.prepare)
    print(summary.table())
    raise SystemExit(130 if summary.run.stopped else 0)


if __name__ == "__main__":
    main()
