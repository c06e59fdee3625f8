"""A flag is a dataclass field: its name, type, default, range and help are written once, here they are read.

Standard library only, so that `--help` answers at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from util.errors import UserError

INT_LIST = "ints"  # kind of a flag that takes "0,16,32"


def flag(
    default: Any,
    help: str,
    *,
    kind: str = "",
    low: float | None = None,
    high: float | None = None,
    multiple: int = 1,
    choices: tuple[str, ...] = (),
    learnt: bool = False,
) -> Any:
    """A dataclass field that is also a command-line flag.

    kind: "bool", "int", "float", "str" or "ints"; by default the type of `default`.
    low, high: the range of a number, both ends allowed; of every number of an "ints" flag.
    learnt: matters only where the learnt generator makes the frames (--netG fewshot).
    """
    kind = kind or type(default).__name__
    spec = {"help": help, "kind": kind, "choices": choices, "learnt": learnt}
    spec |= {"low": low, "high": high, "multiple": multiple}
    return field(default=default, metadata=spec)


@dataclass(frozen=True)
class Flags:
    """Base of every group of flags: values are checked whenever a group is made, by whatever way."""

    def __post_init__(self) -> None:
        for f in fields(self):
            check(f, getattr(self, f.name))


def needs(f: Field) -> str:
    """What a flag takes, in words: for errors and for the table of flags."""
    spec = f.metadata
    if spec["choices"]:
        return "one of " + ", ".join(spec["choices"])
    if spec["kind"] == INT_LIST:
        return f"whole numbers from {spec['low']} with commas between them, as in 0,16,32"
    if spec["kind"] not in ("int", "float"):
        return {"bool": "no value", "str": "text"}[spec["kind"]]
    noun = {"int": "a whole number", "float": "a number"}[spec["kind"]]
    noun = noun if spec["multiple"] == 1 else f"a multiple of {spec['multiple']}"
    if spec["high"] is None:
        return f"{noun}, {spec['low']} or more"
    return f"{noun} from {spec['low']} to {spec['high']}"


def convert(f: Field, text: str) -> Any:
    """A command line's text as the flag's value. Raises UserError naming flag, text and what is needed."""
    kind = f.metadata["kind"]
    try:
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
        if kind == INT_LIST:
            return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise _refusal(f, text) from None
    if not text.strip():
        raise UserError(f"--{f.name}: an empty value; give {needs(f)} or leave the flag out")
    return text


def check(f: Field, value: Any) -> None:
    """Raise UserError unless `value` has the flag's type and range."""
    spec = f.metadata
    kind = spec["kind"]
    if value is None and f.default is None:
        return
    if kind == INT_LIST:
        good = isinstance(value, tuple) and all(_in_range(spec, v, int) for v in value)
    elif kind in ("int", "float"):
        good = _in_range(spec, value, int if kind == "int" else (int, float))
    else:
        good = isinstance(value, bool if kind == "bool" else str)
    if good and spec["choices"]:
        good = value in spec["choices"]
    if not good:
        raise _refusal(f, value)


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the known word that looks most like `word`, or nothing."""
    by_lower = {k.lower(): k for k in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[found[0]]}?" if found else ""


def default_of(f: Field) -> str:
    """The default as it is typed on a command line; nothing for switches and for values found when run."""
    if f.default in (None, "", (), MISSING) or f.metadata["kind"] == "bool":
        return ""
    return ",".join(map(str, f.default)) if isinstance(f.default, tuple) else str(f.default)


def _in_range(spec: Any, value: Any, types: type | tuple[type, ...]) -> bool:
    if isinstance(value, bool) or not isinstance(value, types):
        return False
    if spec["multiple"] > 1 and value % spec["multiple"]:
        return False
    low, high = spec["low"], spec["high"]
    return (low is None or value >= low) and (high is None or value <= high)


def _refusal(f: Field, value: Any) -> UserError:
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    text = str(value) if len(str(value)) <= 60 else str(value)[:57] + "..."
    return UserError(f"--{f.name} {text}: needs {needs(f)}{nearest(text, f.metadata['choices'])}")
