"""The HTML page of an inspection: one file with its pictures inside, which opens offline."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import dominate
import numpy as np
from dominate import tags
from dominate.util import raw

from data.contract import ClipRecord
from data.inspection.clip import ClipView, view_clip
from data.inspection.folder import PreparedFolder, Table
from data.inspection.measures import (
    BAD,
    DOUBT,
    GOOD,
    NOTE,
    Verdict,
    check_files,
    choose_clips,
    shown,
    table_of,
    verdicts,
)
from data.inspection.plots import clip_plots, dataset_plots
from util.errors import UserError
from util.files import atomic_path

_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 82]
_MARKS = {
    GOOD: "✓ good",
    DOUBT: "! look",
    BAD: "✗ bad",
    NOTE: "note",
}  # words and signs, so that no one needs the colours
_CSS = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --line: #bbb; --soft: #666; --card: #f4f4f4 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ddd; --paper: #17181a; --line: #555; --soft: #a0a0a0; --card: #222427 } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1190px; margin: 0 auto; padding: 16px 20px 80px }
h1 { font-size: 24px } h2 { font-size: 19px; margin-top: 40px; border-bottom: 1px solid var(--line) }
h3 { font-size: 16px; margin: 0; overflow-wrap: anywhere }
p.soft, figcaption, dt, .why { color: var(--soft) }
img { max-width: 100%; display: block }
ul.verdicts { list-style: none; padding: 0; margin: 8px 0 }
ul.verdicts li { display: grid; grid-template-columns: 68px 170px 1fr; gap: 10px; padding: 3px 0;
  overflow-wrap: anywhere }
ul.small { font-size: 13px } ul.small li { grid-template-columns: 62px 130px 1fr; padding: 1px 0 }
.mark { border-radius: 4px; text-align: center; font-size: 13px; font-weight: 600; padding: 1px 0; height: 20px }
.good { background: #009e73; color: #000 } .doubt { background: #e69f00; color: #000 }
.bad { background: #b34700; color: #fff } .note { border: 1px solid var(--line); padding: 0 }
article { border: 1px solid var(--line); border-radius: 8px; padding: 14px; margin: 22px 0; background: var(--card) }
figure { margin: 4px 0; display: grid; grid-template-columns: 112px 1fr; gap: 8px; align-items: center;
  font-size: 12px; line-height: 1.3 }
figcaption b { color: var(--ink); display: block; font-size: 13px }
.beside { display: flex; flex-wrap: wrap; gap: 16px; margin: 10px 0 }
.beside { align-items: flex-start } .beside > dl { flex: 1 1 340px } video { width: 400px; max-width: 100% }
dl { display: grid; grid-template-columns: auto 1fr; gap: 1px 12px; font-size: 13px; margin: 0;
  overflow-wrap: anywhere } dd { margin: 0 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px }
"""


@dataclass(frozen=True)
class PagePlan:
    """What the page is to show."""

    n_clips: int = 12  # drawn by chance; the worst of some measures come on top
    seed: int = 0
    split: str = "all"


def write_page(folder: PreparedFolder, plan: PagePlan, path: Path) -> list[str]:
    """Look at the clips and write the page. Returns the ids that could not be shown; they are on it, with why.

    Raises UserError where the page can't be written.
    """
    table = table_of(folder.records)
    chosen = choose_clips(table, plan.n_clips, plan.seed)
    broken = []
    page = dominate.document(title=f"Inspection of {shown(folder.root.name)}")
    with page.head:
        tags.meta(charset="utf-8")
        tags.meta(name="viewport", content="width=device-width, initial-scale=1")
        tags.style(raw(_CSS))
    with page:
        _overview(folder, table, plan)
        tags.h2(f"{len(chosen)} clips")
        tags.p(
            "Drawn by chance, and the worst by some measures. The small triangles below the curves are the frames of "
            "the strips; grey bands are frames that cannot be used.",
            cls="soft",
        )
        for number, (why, k) in enumerate(chosen, 1):
            record = folder.records[k]
            try:
                view = view_clip(folder, k)
            except Exception as error:  # whatever is wrong with a clip, the page is there to show it
                broken.append(record.id)
                _broken(number, why, record, error)
            else:
                _clip(number, why, record, view)
    with atomic_path(path, "--page") as part:
        part.write_text(page.render(pretty=False), encoding="utf-8", errors="replace")
    return broken


def _overview(folder: PreparedFolder, table: Table, plan: PagePlan) -> None:
    tags.h1(f"Inspection of {shown(folder.root.name)}")
    scope = "all splits" if plan.split == "all" else f"split {plan.split}"
    tags.p(f"{shown(str(folder.root))}, {scope}, seed {plan.seed}", cls="soft")
    _verdict_list(verdicts(folder, table, check_files(folder) if folder.kind == "index" else None))
    if folder.settings:
        with tags.details():
            tags.summary("Prepared with these options")
            tags.pre(
                shown(
                    json.dumps(folder.settings, indent=1, ensure_ascii=False, sort_keys=True),
                    4000,
                    lines=True,
                )
            )
    if len(table) or folder.skipped:
        tags.h2("All clips")
        tags.p("Dashed: the median.", cls="soft")
        n_skipped = {reason: n for reason, (n, _) in folder.skipped.items()}
        _svg(dataset_plots(table, n_skipped), "distributions over all clips")


def _verdict_list(found: list[Verdict], cls: str = "verdicts") -> None:
    with tags.ul(cls=cls):
        for verdict in found:
            with tags.li():
                tags.span(_MARKS[verdict.level], cls=f"mark {verdict.level}")
                tags.b(shown(verdict.title))
                tags.span(shown(verdict.text, 600))


def _broken(number: int, why: str, record: ClipRecord, error: Exception) -> None:
    with tags.article(id=f"clip-{number}"):
        _heading(number, why, record)
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        _verdict_list([Verdict(BAD, "Cannot be shown", f"{kind}{error}")], "verdicts small")
        _facts(record)


def _heading(number: int, why: str, record: ClipRecord) -> None:
    tags.h3(f"{number}. {shown(record.id)}")
    tags.div(shown(why), cls="why")


def _clip(number: int, why: str, record: ClipRecord, view: ClipView) -> None:
    with tags.article(id=f"clip-{number}"):
        _heading(number, why, record)
        _verdict_list(view.remarks, "verdicts small")
        for row in view.rows:
            with tags.figure():
                with tags.figcaption():
                    tags.b(row.name)
                    tags.span(row.note)
                tags.img(src=_picture(row.picture), alt=row.name)
        _svg(clip_plots(view.curves, view.frames), "curves over time")
        with tags.div(cls="beside"):
            source = f"data:video/mp4;base64,{base64.b64encode(view.film).decode()}"
            tags.video(src=source, controls=True, loop=True, preload="metadata")
            _facts(record)


def _facts(record: ClipRecord) -> None:
    with tags.dl():
        for name, value in _listed_facts(record):
            tags.dt(name)
            tags.dd(shown(value))


def _listed_facts(record: ClipRecord) -> Iterator[tuple[str, str]]:
    yield "speaker, split", f"{record.speaker}, {record.split}"
    yield "length", f"{record.frames} frames, face seen in {record.longest_run} in a row at most"
    yield "source", f"{record.source}, {record.source_fps:.2f} frames/s"
    for name, value in (("emotion", record.emotion), ("intensity", record.intensity), ("text", record.text)):
        if value:
            yield name, value
    if record.quality:
        yield "measured", ", ".join(f"{shown(k)} {v:.3g}" for k, v in sorted(record.quality.items()))
    if record.facts:
        yield "facts", ", ".join(f"{k} {v}" for k, v in sorted(record.facts.items()))


def _svg(text: str, alt: str) -> None:
    """As an image, in which no script runs and no name clashes with the page's."""
    tags.img(src=f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}", alt=alt)


def _picture(image: np.ndarray) -> str:
    """JPEG; PNG for line drawings, which are smaller and sharper so."""
    lines = bool((image[..., :1] == image).all())
    if lines:
        data = cv2.imencode(".png", image[..., 0], [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
    else:
        data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), _JPEG)[1]
    return f"data:image/{'png' if lines else 'jpeg'};base64,{base64.b64encode(data).decode()}"
