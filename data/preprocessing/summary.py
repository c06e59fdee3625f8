"""What a prepared folder holds and how fast the last run was: counted from the index, shown as a table, as JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.clip_index import parsed_lines
from data.contract import INDEX, SKIPPED
from data.preprocessing.quality import BROKEN, REASONS
from util.files import atomic_path
from util.types import FPS

SUMMARY = "summary.json"


@dataclass(frozen=True)
class SplitCount:
    """One split of a prepared folder."""

    clips: int
    frames: int
    speakers: int


@dataclass(frozen=True)
class RunFigures:
    """What one run did. Alone in the summary these differ from run to run."""

    kept: int = 0
    skipped: int = 0
    found_done: int = 0  # clips that an earlier run had done
    frames: int = 0  # of the clips kept
    seconds: float = 0.0
    cores: int = 1
    stopped: bool = False  # by Ctrl-C or SIGTERM

    @property
    def frames_per_s(self) -> float:
        """Of all cores together."""
        return self.frames / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Summary:
    """A prepared folder in numbers."""

    kept: int
    frames: int
    speakers: int
    skipped: dict[str, int]  # reason to clips
    splits: dict[str, SplitCount]
    run: RunFigures = field(default_factory=RunFigures)

    @property
    def hours(self) -> float:
        """Of the clips kept."""
        return self.frames / FPS / 3600

    @property
    def n_broken(self) -> int:
        """Clips left out because they could not be read or worked on; closed quality gates don't count."""
        return sum(n for reason, n in self.skipped.items() if reason in BROKEN)

    def to_json(self) -> str:
        """The summary as text. All but "run" depends on nothing but the clips and the settings."""
        values: dict[str, Any] = asdict(self) | {"hours": round(self.hours, 4), "broken": self.n_broken}
        values["run"] |= {
            "seconds": round(self.run.seconds, 1),
            "frames_per_s": round(self.run.frames_per_s, 1),
            "frames_per_s_and_core": round(self.run.frames_per_s / self.run.cores, 1),
        }
        return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def table(self) -> str:
        """The summary for people."""
        rows = [("kept", self.kept, f"{self.frames} frames, {self.hours:.2f} h, {self.speakers} speakers")]
        for name, split in sorted(self.splits.items()):
            rows.append((f"  {name}", split.clips, f"{split.frames} frames, {split.speakers} speakers"))
        rows.append(("skipped", sum(self.skipped.values()), f"{self.n_broken} of them broken"))
        rows += [(f"  {reason}", n, REASONS.get(reason, "")) for reason, n in sorted(self.skipped.items())]
        lines = [f"{name:<18} {count:>9}  {words}".rstrip() for name, count, words in rows]
        run = self.run
        lines.append(f"this run: {run.kept} kept, {run.skipped} skipped, {run.found_done} were done before")
        if run.frames:
            per_core = run.frames_per_s / run.cores
            lines.append(
                f"{run.frames} frames in {run.seconds:.1f} s: {run.frames_per_s:.1f} frames/s, "
                f"{per_core:.1f} per core ({run.cores})"
            )
        return "\n".join(lines)


def summarise(out: Path, run: RunFigures) -> Summary:
    """Count what the index of a prepared folder tells. Raises UserError where it is damaged."""
    clips, frames = Counter(), Counter()
    speakers: dict[str, set[str]] = {}
    for _, values in parsed_lines(out / INDEX):
        split = values["split"]
        clips[split] += 1
        frames[split] += values["frames"]
        speakers.setdefault(split, set()).add(values["speaker"])
    return Summary(
        kept=clips.total(),
        frames=frames.total(),
        speakers=len(set().union(*speakers.values())),
        skipped=dict(sorted(Counter(v["reason"] for _, v in parsed_lines(out / SKIPPED)).items())),
        splits={s: SplitCount(clips[s], frames[s], len(speakers[s])) for s in sorted(clips)},
        run=run,
    )


def write_summary(out: Path, summary: Summary) -> None:
    """Write OUT/summary.json. Raises UserError where the disk is full."""
    with atomic_path(out / SUMMARY, "--out") as part:
        part.write_text(summary.to_json(), encoding="utf-8")
