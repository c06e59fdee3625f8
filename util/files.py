"""Files that are whole or not there: checked input, atomic output, a results folder that can be used."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from util.errors import UserError

MIN_FREE_MB = 20  # about ten minutes of 256 x 256 video
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


def check_file(path: str | Path, flag: str, needed: str) -> Path:
    """The path of a readable file that is not empty; `needed` says in words what it should be.

    Raises UserError, naming the flag, where it is missing, a folder, empty or not readable.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f"{flag} {path}: is a folder; {needed} is needed; give the file itself")
        if not path.exists():
            raise UserError(f"{flag} {path}: no such file; {needed} is needed; check the spelling")
        if not path.stat().st_size:
            raise UserError(f"{flag} {path}: the file is empty (0 bytes); {needed} is needed; copy it again")
        with path.open("rb"):
            pass
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read ({error.strerror}); {needed} is needed") from None
    return path


def write_error(folder: str | Path, error: OSError, flag: str = "--results_dir") -> UserError | None:
    """What to tell the user when writing into a folder failed; None if it is not a matter of the folder."""
    code = abs(error.errno or 0)
    if code in _NO_SPACE:
        return UserError(f"{folder}: no space is left there; free some, or choose another folder with {flag}")
    if code in _NOT_WRITABLE:
        reason = os.strerror(code).lower()
        return UserError(f"{folder}: cannot be written to ({reason}); choose another folder with {flag}")
    return None


@contextlib.contextmanager
def atomic_path(path: str | Path, flag: str = "--results_dir") -> Iterator[Path]:
    """A temporary name in the folder of `path`, with its suffix, renamed to it once the block is through.

    On any failure, Ctrl-C included, the temporary file is removed and what stood at `path` stays.
    Raises UserError, naming the folder, where it is full or may not be written to.
    """
    path = Path(path)
    part = _part(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path.parent, error, flag) or error from None
    try:
        yield part
        if path.is_dir():
            raise UserError(f"{path}: is a folder; a file is to be written there; choose another name")
        os.replace(part, path)
    except OSError as error:
        ours = error.filename is None or part.name in str(error.filename)  # else: another file's trouble
        raise (write_error(path.parent, error, flag) if ours else None) or error from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.parent / f".part-{uuid.uuid4().hex[:12]}{path.suffix}"


def results_folder(path: str | Path, flag: str = "--results_dir") -> Path:
    """Make a folder for results and try to write to it, so that a full or locked one shows before the work.

    Raises UserError where it cannot be made or written to, or has less than 20 MB free.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{flag} {path}: is a file; a folder is needed; choose another name")
    try:
        path.mkdir(parents=True, exist_ok=True)
        part = _part(path / "try")
        try:
            part.write_bytes(bytes(4096))
        finally:
            part.unlink(missing_ok=True)
        free = shutil.disk_usage(path).free
    except OSError as error:
        raise write_error(path, error, flag) or UserError(
            f"{flag} {path}: cannot be made ({error})"
        ) from None
    if free < MIN_FREE_MB * 1e6:
        raise UserError(
            f"{flag} {path}: only {free / 1e6:.1f} MB are free there, {MIN_FREE_MB} MB are needed; "
            "free some, or choose another folder"
        )
    return path
