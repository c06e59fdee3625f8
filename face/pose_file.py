"""Head poses from and to files, for `--head_motion FILE`.

CSV: a header `frame,yaw,pitch,roll` or `frame,yaw,pitch,roll,x,y,scale`, then one keyframe a row.
Without a header the same columns are meant. npy: (N, 4) or (N, 7) are such keyframes, (T, 3) or (T, 6) a
pose for every frame from 0 on. Angles are absolute, in degrees: 0 looks into the camera. x, y: shift
from the reference's place in outer-eye distances; scale: size relative to the reference's, 1 = the same.
Between keyframes the pose follows a monotone cubic (PCHIP: smooth, no overshoot); before the first and
after the last it is held.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from scipy.interpolate import PchipInterpolator

from util.errors import ShapeError, UserError
from util.files import atomic_path, check_file

COLUMNS = ("frame", "yaw", "pitch", "roll", "x", "y", "scale")
MAX_ANGLE = 30.0  # degrees: beyond it the single reference has no picture of the far side
MAX_SHIFT = 1.0  # outer-eye distances
SCALE_RANGE = (0.5, 2.0)
_FLAG = "--head_motion"
_NEED = "frame,yaw,pitch,roll or frame,yaw,pitch,roll,x,y,scale are needed"


@dataclass(frozen=True)
class PoseCurve:
    """Head pose of T frames."""

    angles: np.ndarray  # (T, 3) float32: absolute yaw, pitch, roll in degrees
    shift: np.ndarray  # (T, 2) float32: x, y from the reference's place, face units
    log_scale: np.ndarray  # (T,) float32: natural logarithm of the size relative to the reference's

    def __len__(self) -> int:
        return len(self.angles)


def read_pose_file(path: str | Path, n_frames: int) -> PoseCurve:
    """The pose of `n_frames` frames from a CSV or npy file (module docstring).

    Raises UserError, naming --head_motion, the file and the row, where it is missing, empty, damaged, of
    other columns, not finite, not sorted, or out of range (angles 30 degrees, shift 1, scale 0.5 to 2).
    """
    path = check_file(path, _FLAG, "audio, target, still, or a CSV or npy file of poses")
    if path.suffix.lower() == ".npy":
        keys, first_row = _read_npy(path), 0
    else:
        keys, first_row = _read_csv(path)
    _check(keys, path, first_row)
    return _interpolate(keys, n_frames)


def write_pose_file(path: str | Path, curve: PoseCurve) -> None:
    """Write a pose for every frame, as CSV or (suffix .npy) as an array (T, 7); atomically.

    Raises ShapeError where the curve's parts do not fit together. Inverse of `read_pose_file`.
    """
    path, n = Path(path), len(curve)
    for name, part, shape in (("shift", curve.shift, (n, 2)), ("log_scale", curve.log_scale, (n,))):
        if part.shape != shape:
            raise ShapeError(name, str(shape), part.shape)
    table = np.column_stack([np.arange(n), curve.angles, curve.shift, np.exp(curve.log_scale)])
    with atomic_path(path, _FLAG) as part, part.open("wb") as file:
        if path.suffix.lower() == ".npy":
            np.save(file, table.astype(np.float32), allow_pickle=False)
        else:
            formats = ["%d", *["%.5f"] * (len(COLUMNS) - 1)]
            np.savetxt(file, table, formats, ",", header=",".join(COLUMNS), comments="")


def _read_npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, OverflowError, MemoryError, BadZipFile) as error:
        why = "it holds Python objects" if "allow_pickle" in str(error) else "it cannot be read"
        raise UserError(f"{_FLAG} {path}: {why}; an npy array of numbers is needed; save it again") from None
    good = isinstance(array, np.ndarray) and array.dtype.kind in "fiu" and array.ndim == 2
    if not good or array.shape[1] not in (3, 4, 6, 7):
        found = f"shape {array.shape}, type {array.dtype}" if isinstance(array, np.ndarray) else "an archive"
        raise UserError(
            f"{_FLAG} {path}: {found}; (T, 3) or (T, 6) poses, or (N, 4) or (N, 7) keyframes with "
            "the frame first, are needed"
        )
    array = array.astype(np.float64)
    if array.shape[1] in (3, 6):
        array = np.column_stack([np.arange(len(array)), array])
    return array


def _read_csv(path: Path) -> tuple[np.ndarray, int]:
    """Keyframes (N, 4 or 7) and the line number of the first."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError):
        raise UserError(f"{_FLAG} {path}: not a text file; a CSV with {_NEED}") from None
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise UserError(f"{_FLAG} {path}: empty; at least one row of {_NEED}")
    cells = [(i, [c.strip() for c in line.split(",")]) for i, line in lines]
    n_columns, head = len(COLUMNS), cells[0][1]
    if not _is_number(head[0]):
        names = tuple(c.lower() for c in head)
        if names not in (COLUMNS[:4], COLUMNS):
            raise UserError(f"{_FLAG} {path}: the columns are {','.join(head)[:80]}; {_NEED}")
        n_columns, cells = len(names), cells[1:]
    elif len(head) in (4, len(COLUMNS)):
        n_columns = len(head)
    if not cells:
        raise UserError(f"{_FLAG} {path}: no row after the header; at least one row of {_NEED}")
    for i, row in cells:
        if len(row) != n_columns:
            raise UserError(f"{_FLAG} {path}: line {i} has {len(row)} columns; {_NEED}")
        if bad := [c for c in row if not _is_number(c)]:
            raise UserError(f"{_FLAG} {path}: line {i}: '{bad[0][:40]}' is not a number; numbers are needed")
    return np.array([[float(c) for c in row] for _, row in cells]), cells[0][0]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _check(keys: np.ndarray, path: Path, first_row: int) -> None:
    """Refuse what cannot be a head's motion, naming the first row at fault."""

    def refuse(bad: np.ndarray, found: str, needed: str) -> None:
        if bad.any():
            i = int(bad.argmax())
            raise UserError(f"{_FLAG} {path}: row {first_row + i}: {found.format(*keys[i])}; {needed}")

    if not len(keys):
        raise UserError(f"{_FLAG} {path}: empty; at least one pose is needed")
    refuse(~np.isfinite(keys).all(1), "a value that is not finite", "finite numbers are needed")
    frames = keys[:, 0]
    refuse((frames < 0) | (frames != np.round(frames)), "frame {0:g}", "whole numbers from 0 on are needed")
    refuse(
        np.diff(frames, prepend=-1) <= 0, "frame {0:g} does not come after the row before", "sort the frames"
    )
    refuse(
        np.abs(keys[:, 1:4]).max(1) > MAX_ANGLE,
        "yaw {1:g}, pitch {2:g}, roll {3:g}",
        f"angles from -{MAX_ANGLE:g} to {MAX_ANGLE:g} degrees are needed; turn the head less",
    )
    if keys.shape[1] == len(COLUMNS):
        far = np.abs(keys[:, 4:6]).max(1) > MAX_SHIFT
        refuse(
            far, "x {4:g}, y {5:g}", f"shifts from -{MAX_SHIFT:g} to {MAX_SHIFT:g} eye distances are needed"
        )
        low, high = SCALE_RANGE
        refuse(
            (keys[:, 6] < low) | (keys[:, 6] > high),
            "scale {6:g}",
            f"scales from {low:g} to {high:g} are needed",
        )


def _interpolate(keys: np.ndarray, n_frames: int) -> PoseCurve:
    if keys.shape[1] == 4:
        keys = np.column_stack([keys, np.zeros((len(keys), 2)), np.ones(len(keys))])
    values = keys[:, 1:].copy()
    values[:, 5] = np.log(values[:, 5])
    at = np.clip(np.arange(n_frames), keys[0, 0], keys[-1, 0])
    curve = PchipInterpolator(keys[:, 0], values)(at) if len(keys) > 1 else np.repeat(values, n_frames, 0)
    curve = curve.astype(np.float32)
    return PoseCurve(curve[:, :3], curve[:, 3:5], curve[:, 5])
