"""Plots of the data page as SVG text, readable on light and dark ground and by the colour-blind."""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from data.inspection.clip import Curves
from data.inspection.folder import Table
from data.inspection.measures import MEASURES, shown
from util.types import FPS, SAMPLE_RATE

_INK = "#7b7b7b"  # of axes and words: 4.2 to 1 on white and on near-black
_BLUE, _ORANGE, _GREEN, _RED, _PINK = "#2f8fd0", "#e69f00", "#009e73", "#d55e00", "#cc79a7"  # Okabe and Ito's
_WIDTH, _ROW = 11.2, 2.1  # inches
_COLUMNS, _BAR_COLUMNS = 4, 3
_MOST_BARS = 12
_CLIP_GRID = {"left": 0.055, "right": 0.99, "bottom": 0.12, "top": 0.93, "hspace": 0.3, "wspace": 0.22}
_PATH, _DECIMALS = re.compile(r' d="[^"]*"'), re.compile(r"(\.\d)\d+")  # a tenth of a point is enough
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tilt",  # the same plot is the same text
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # a browser without it takes its own
    "font.size": 8.5,
    "text.parse_math": False,  # names with $ are names
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.grid": True,
    "grid.alpha": 0.25,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    "grid.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@contextlib.contextmanager
def _figure(width: float, height: float) -> Iterator[tuple]:
    """(figure, parts): a figure to draw on, and the list that its SVG text is put into at the end; inches."""
    import matplotlib  # heavy: only when something is drawn
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure, made = Figure((width, height)), []
        FigureCanvasSVG(figure)
        yield figure, made
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        short = _PATH.sub(lambda path: _DECIMALS.sub(r"\1", path[0]), text.getvalue())
        made.append(re.sub(r"\n\s+", "\n", short))


def dataset_plots(table: Table, n_skipped: Mapping[str, int]) -> str:
    """Distributions over all clips, from the index alone. n_skipped: clips left out, by reason."""
    series = [("clip length", "s", table.frames / FPS)]
    series += [(m.title, m.unit, table.measures[m.key]) for m in MEASURES]
    series.append(("clips per speaker", "clips", np.array(list(table.speakers.counts().values()))))
    histograms = [(title, unit, found) for title, unit, v in series if len(found := v[np.isfinite(v)])]
    bars = {
        "split": table.splits.counts(),
        "emotion": table.emotions.counts(),
        "skipped because of": n_skipped,
    }
    bars = {title: counts for title, counts in bars.items() if any(counts)}  # a name at least
    n_rows = -(-len(histograms) // _COLUMNS)
    height = _ROW * (n_rows + bool(bars))  # inches
    with _figure(_WIDTH, height) as (figure, made):
        for i, (title, unit, values) in enumerate(histograms):
            _histogram(_cell(figure, i, _COLUMNS, 0.45), title, unit, values)
        for i, (title, counts) in enumerate(bars.items()):
            colour = _ORANGE if title.startswith("skipped") else _BLUE
            _bars(_cell(figure, i, _BAR_COLUMNS, 1.2, n_rows), title, counts, colour)
    return made[0]


def _cell(figure, number: int, columns: int, left: float, first_row: int = 0):
    """The axes of one plot. left: inches for the words beside it."""
    width, height = figure.get_size_inches()
    row, column = divmod(number, columns)
    cell = width / columns
    x, y = column * cell + left, height - (first_row + row + 1) * _ROW + 0.42
    return figure.add_axes((x / width, y / height, (cell - left - 0.12) / width, (_ROW - 0.75) / height))


def _histogram(axis, title: str, unit: str, values: np.ndarray) -> None:
    whole = unit == "clips" and np.ptp(values) < 24
    bins = np.arange(values.min() - 0.5, values.max() + 1) if whole else min(24, max(6, len(values) // 4))
    axis.hist(values, bins, color=_BLUE)
    axis.yaxis.get_major_locator().set_params(integer=True)
    if whole:
        axis.xaxis.get_major_locator().set_params(integer=True)
    axis.axvline(float(np.median(values)), color=_RED, lw=1.4, ls="--")
    if not np.ptp(values):
        axis.set_xticks(values[:1])
    axis.yaxis.set_major_formatter(_short)
    axis.set_title(
        f"{title}: median {np.median(values):.3g}" + (f" {unit}" if unit not in ("clips", "r") else "")
    )
    axis.set_xlabel(f"{unit}, {len(values):,} values")


def _short(count: float, _: int | None = None) -> str:
    return f"{count / 1000:g}k" if count >= 1000 else f"{count:g}"


def _bars(axis, title: str, counts: Mapping[str, int], colour: str) -> None:
    longest = Counter(counts).most_common(_MOST_BARS)
    names = [shown(name or "(none)", 16) for name, _ in longest]
    axis.barh(range(len(names)), [n for _, n in longest], color=colour)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(max(len(names), 4) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    more = f" ({len(counts) - _MOST_BARS} more)" if len(counts) > _MOST_BARS else ""
    axis.set_title(title + more)
    for i, (_, n) in enumerate(longest):
        axis.text(n, i, f" {n:,}", va="center")
    axis.set_xlim(0, 1.18 * max(counts.values()))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.xaxis.set_major_formatter(_short)


def clip_plots(curves: Curves, frames: np.ndarray) -> str:
    """Angles, translation, lips beside loudness, and waveform of one clip. frames: marked, those of its pictures."""
    with _figure(11.2, 3.7) as (figure, made):
        axes = figure.subplots(2, 2, sharex=True, gridspec_kw=_CLIP_GRID)
        at = np.arange(len(curves.seen)) / FPS
        _lines(axes[0, 0], at, curves.angles_deg, ("yaw", "pitch", "roll"), "head, degrees")
        _lines(axes[0, 1], at, curves.shift, ("x", "y", "z"), "translation of rt less its median, px")
        _lips_and_loudness(axes[1, 0], at, curves)
        _waveform(axes[1, 1], curves, len(curves.seen))
        for axis in axes.ravel():
            axis.set_xlim(0, max(len(curves.seen) / FPS, 1 / FPS))
            for start, stop in _runs(~curves.seen):
                axis.axvspan(start / FPS, stop / FPS, color=_INK, alpha=0.3, lw=0)
            axis.plot(frames / FPS, np.zeros(len(frames)), "^", color=_INK, ms=4, clip_on=False,
                      transform=axis.get_xaxis_transform())  # fmt: skip
        for axis in axes[1]:
            axis.set_xlabel("s")
    return made[0]


def _lines(axis, at: np.ndarray, values: np.ndarray, names: tuple[str, ...], title: str) -> None:
    for name, column, colour, style in zip(
        names, values.T, (_BLUE, _ORANGE, _GREEN), ("-", "--", "-."), strict=True
    ):
        axis.plot(at, column, style, color=colour, label=name, lw=1.3)
    axis.set_title(title)
    axis.legend(ncols=3, loc="upper right", borderaxespad=0, handlelength=1.8)
    axis.margins(y=0.25)


def _lips_and_loudness(axis, at: np.ndarray, curves: Curves) -> None:
    axis.plot(at, curves.lips, color=_BLUE, lw=1.3)
    axis.set_title("lips open (blue, solid), loudness (orange, dashed)")
    axis.set_ylabel("eye distances", color=_BLUE)
    if curves.loudness_db is not None:
        other = axis.twinx()
        other.plot(at, curves.loudness_db, "--", color=_ORANGE, lw=1.3)
        other.set_ylabel("dB", color=_ORANGE)
        other.grid(visible=False)


def _waveform(axis, curves: Curves, n_frames: int) -> None:
    axis.set_title("sound" if curves.samples is not None else "sound: none")
    axis.set_ylim(-1, 1)
    if curves.samples is None:
        return
    samples = curves.samples[: n_frames * SAMPLE_RATE // FPS]
    step = max(len(samples) // 300, 1)
    blocks = samples[: len(samples) // step * step].reshape(-1, step)
    at = np.arange(len(blocks)) * step / SAMPLE_RATE
    axis.fill_between(at, blocks.min(1), blocks.max(1), color=_PINK, lw=0.5)
    axis.set_ylim(*(np.array([-1, 1]) * max(1.1 * float(np.abs(samples).max()), 0.02)))


def _runs(flags: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, stop) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
