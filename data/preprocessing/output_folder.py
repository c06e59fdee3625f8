"""The folder that preprocessing writes into: whose it is, one run at a time, and with which settings."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.contract import SETTINGS
from util.errors import UserError
from util.files import atomic_path, results_folder

LOCK = ".lock"
PART = ".part-"  # how the names of unfinished files begin


@contextlib.contextmanager
def output_folder(out: Path, root: Path, settings: dict[str, Any]) -> Iterator[bool]:
    """Hold `out` for one run, made by it or by an earlier one with equal settings.

    Gives whether an earlier run was cut off there; what that one left unfinished is removed.
    settings: flag to value, for preprocess.json. Raises UserError, naming --out or the flag that differs.
    """
    _check_apart(out, root)
    _check_ours(out)
    results_folder(out, "--out")
    with _lock(out) as cut_off:
        _check_settings(out / SETTINGS, settings)
        if cut_off:
            remove_parts(out)
        yield cut_off


def remove_parts(out: Path) -> None:
    """Remove unfinished files anywhere under `out`. Only for whoever holds it."""
    for folder, _, names in os.walk(out):
        for name in names:
            if name.startswith(PART):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(folder, name))


def _check_apart(out: Path, root: Path) -> None:
    """The prepared files are named like raw ones (AudioWAV/X.wav): they must never meet."""
    out, root = out.resolve(), root.resolve()
    if out == root or out.is_relative_to(root) or root.is_relative_to(out):
        word = "is" if out == root else "lies inside" if out.is_relative_to(root) else "holds"
        raise UserError(
            f"--out {out}: {word} --dataroot {root}, whose files could be overwritten; give a folder elsewhere"
        )


def _check_ours(out: Path) -> None:
    if not out.is_dir() or (out / SETTINGS).is_file():
        return
    foreign = [p.name for p in out.iterdir() if p.name != LOCK and not p.name.startswith(PART)]
    if foreign:
        raise UserError(
            f"--out {out}: holds other files ({min(foreign)}) and no {SETTINGS}; give a new or an empty folder"
        )


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if not path.is_file():
        with atomic_path(path, "--out") as part:
            part.write_text(text, encoding="utf-8")
        return
    try:
        before, wanted = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        names = sorted({*before, *wanted})
    except (ValueError, TypeError):
        raise UserError(
            f"{path}: damaged; it says how the folder was made; give another --out, or delete the folder"
        ) from None
    for name in names:
        if (old := before.get(name)) != (new := wanted.get(name)):
            raise UserError(
                f"--{name} {new}: {path.parent} was made with --{name} {old}; "
                "one folder holds one kind of clips: give another --out, or the old value"
            )


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[bool]:
    """Hold out/.lock, which ends with the process. Gives whether the last holder left the file behind."""
    path = out / LOCK
    while True:
        cut_off = path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            taken = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
            found = "another run is writing there" if taken else f"cannot be locked ({error.strerror})"
            raise UserError(f"--out {out}: {found}; wait for it, or give another folder") from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)  # its holder removed it between our two steps
    try:
        yield cut_off
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
