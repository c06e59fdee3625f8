"""Preprocessing of a whole data set: every raw clip once, in parallel, and only what is not done yet.

A run can be stopped, killed or given up at any time; the same command goes on from there, and the finished folder
is the same to the byte whatever happened on the way and however many processes there were (summary.json's "run"
apart). This process alone writes the index; the others write the files of their clip, each under a temporary name.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from data.clip_index import DoneClip, Journal, done_clips, merge_journal, read_index
from data.contract import ClipRecord, RawClip, SkippedClip, clip_paths
from data.preprocessing.clip_source import source_bytes, source_name
from data.preprocessing.output_folder import output_folder, remove_parts
from data.preprocessing.summary import SUMMARY, RunFigures, Summary, summarise, write_summary
from data.preprocessing.worker_pool import Failure, SameProcess, WorkerPool, never
from util.errors import UserError

if TYPE_CHECKING:
    from data.preprocessing.prepare_clip import ClipSettings, ClipTools

__all__ = ["RunPlan", "prepare_clips", "read_index"]

ClipFunction = Callable[..., "ClipRecord | SkippedClip"]


@dataclass(frozen=True)
class RunPlan:
    """How the work is done; nothing in here changes the result."""

    n_processes: int = 1  # 0: in this process, where a clip that crashes or hangs takes the run with it
    engine: str = "local"  # or "ray"
    address: str = "local"  # of the Ray cluster: "local" starts one here, "auto", or HOST:PORT
    timeout_s: float = 0.0  # per clip; 0 is no limit
    retry_skipped: bool = False  # try clips again that an earlier run left out
    n_clips: int | None = None  # how many there are, to tell how much time is left
    stopping: Callable[[], bool] = field(default=never, repr=False)  # True: finish what is under way, no more


def prepare_clips(
    clips: Iterable[RawClip],
    out: Path,
    root: Path,
    settings: ClipSettings,
    tools: ClipTools,
    plan: RunPlan,
    prepare: ClipFunction | None = None,
) -> Summary:
    """Prepare the clips found under `root` into `out`, those that are not there yet.

    clips: may be lazy and of any length; with absolute paths for Ray. Ids are unique, the data set is one.
    prepare: what does one clip, if not `prepare_clip`: a function with its parameters that other processes can import
    by its name.
    Raises UserError for a folder that cannot be used and for a full disk; what is done by then stays.
    """
    if prepare is None:
        from data.preprocessing.prepare_clip import prepare_clip as prepare  # late: takes seconds
    clips = iter(clips)
    first = next(clips, None)
    if first is None:
        raise UserError(f"--dataroot {root}: no clips were found there; check the folder and --dataset_name")
    out, root = Path(out).absolute(), Path(root).absolute()
    flags = {"dataset_name": first.dataset, **_flat(asdict(settings))}
    with output_folder(out, root, flags) as cut_off:
        merge_journal(out)
        run = _Run(out, root, plan, done_clips(out), dirty=cut_off)
        try:
            run.work(
                partial(prepare, out=out, root=root, settings=settings, tools=tools), chain([first], clips)
            )
        finally:
            if run.dirty:
                remove_parts(out)
            merge_journal(out)
        summary = summarise(out, run.figures())
        if run.kept + run.skipped or not (out / SUMMARY).is_file():
            write_summary(out, summary)
    return summary


@dataclass
class _Run:
    out: Path
    root: Path
    plan: RunPlan
    done: dict[str, DoneClip]
    dirty: bool  # processes were ended in mid-work: unfinished files may lie about
    kept: int = 0
    skipped: int = 0
    found_done: int = 0
    frames: int = 0
    cores: int = 1
    started: float = field(default_factory=time.monotonic)

    def work(self, function: Callable[[RawClip], Any], clips: Iterable[RawClip]) -> None:
        was_dirty, self.dirty = self.dirty, True  # until it is known that nothing was cut short
        engine = _engine(function, self.plan)
        with Journal(self.out) as journal, _bar(self.plan.n_clips) as bar, closing(engine):
            for clip, result in engine.results(self._to_do(clips, bar), self.plan.stopping):
                if isinstance(result, Failure):
                    was_dirty = True
                    size, source = source_bytes(clip), source_name(clip, self.root)
                    result = SkippedClip(clip.id, source, size, result.reason, result.detail)
                self._take(clip, result, journal)
                self._show(bar)
        self.dirty, self.cores = was_dirty, engine.cores

    def _to_do(self, clips: Iterable[RawClip], bar: tqdm) -> Iterator[RawClip]:
        for clip in clips:
            if self.plan.stopping():
                return
            if not self._is_done(clip):
                yield clip
                continue
            self.found_done += 1
            if bar.total is not None:  # they would spoil the time that is left
                bar.total -= 1

    def _is_done(self, clip: RawClip) -> bool:
        done = self.done.get(clip.id)
        if done is None or done.source_bytes != source_bytes(clip):
            return False
        if not done.kept:
            return not self.plan.retry_skipped
        files = _files(clip, self.out)[: None if done.has_sound else -1]
        return all(path.is_file() for path in files) and files[0].stat().st_size > 0

    def _take(self, clip: RawClip, result: ClipRecord | SkippedClip, journal: Journal) -> None:
        if isinstance(result, SkippedClip):
            self.skipped += 1
            for path in _files(clip, self.out):  # of an earlier run, or of a process that died between two
                path.unlink(missing_ok=True)
        else:
            self.kept += 1
            self.frames += result.frames
        journal.add(result)

    def _show(self, bar: tqdm) -> None:
        rate = self.frames / max(time.monotonic() - self.started, 1e-9)
        bar.set_postfix_str(f"{rate:.0f} frames/s, {self.kept} kept, {self.skipped} skipped", refresh=False)
        bar.update()

    def figures(self) -> RunFigures:
        seconds = time.monotonic() - self.started
        counts = (self.kept, self.skipped, self.found_done, self.frames)
        return RunFigures(*counts, seconds, self.cores, self.plan.stopping())


def _engine(function: Callable[[RawClip], Any], plan: RunPlan) -> Any:
    if plan.engine == "ray":
        from data.preprocessing.ray_engine import RayEngine  # late: an optional extra

        return RayEngine(function, plan.n_processes, plan.timeout_s, plan.address)
    if plan.n_processes:
        return WorkerPool(function, plan.n_processes, plan.timeout_s)
    return SameProcess(function)


def _files(clip: RawClip, out: Path) -> list[Path]:
    """All files of a prepared clip: the video first, the sound last."""
    paths = clip_paths(out, clip.id, clip.dataset)
    return [*(getattr(paths, name) for name in paths.__dataclass_fields__), out / clip.audio_id]


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Settings by the names of their flags: groups in groups opened."""
    flat = {}
    for name, value in values.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat


def _bar(total: int | None) -> tqdm:
    pause_s = 0.5 if sys.stderr.isatty() else 60.0  # a log needs few lines
    return tqdm(total=total, unit="clip", desc="clips", mininterval=pause_s, file=sys.stderr)
