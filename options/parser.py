"""From a command line to a dictionary of the flags that it gives, with every error in one line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any, NoReturn

from options.flags import Flags, convert, default_of, nearest
from util.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are UserErrors and not a page of usage."""

    def __init__(self, prog: str, description: str) -> None:
        usage = "%(prog)s [flags]"
        super().__init__(prog=prog, usage=usage, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        message = message.replace("expected one argument", "its value is missing; write it behind the flag")
        raise UserError(message.replace("ignored explicit argument", "takes no value, but was given"))


def read_command(
    script: str,
    description: str,
    groups: Sequence[type[Flags]],
    argv: Sequence[str],
    elsewhere: dict[str, str],
) -> dict[str, Any]:
    """The flags that `argv` gives, converted; flags that are not given are not in the dictionary.

    elsewhere: flag to the script that has it, for flags that this script hasn't.
    Raises UserError. Prints help and leaves by SystemExit(0) on --help.
    """
    parser = OneLineParser(script, description)
    by_name: dict[str, Field] = {}
    for group in groups:
        section = parser.add_argument_group((group.__doc__ or "").split("\n")[0].rstrip("."))
        for f in fields(group):
            by_name[f.name] = f
            _add_flag(section, f)
    known, extra = parser.parse_known_args(argv)
    if extra:
        raise _unknown(extra[0], [*by_name, "help"], elsewhere)
    return {k: v if isinstance(v, bool) else convert(by_name[k], v) for k, v in vars(known).items()}


def _add_flag(section: Any, f: Field) -> None:
    spec, default = f.metadata, default_of(f)
    text = spec["help"] + (f" (default: {default})" if default else "")
    text += " (of --netG fewshot)" if spec["learnt"] else ""
    shown: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if spec["kind"] == "bool":
        section.add_argument(f"--{f.name}", action="store_true", **shown)
        return
    words = {"int": "N", "float": "X", "ints": "N,N", "str": "TEXT"}
    metavar = "{" + ",".join(spec["choices"]) + "}" if spec["choices"] else words[spec["kind"]]
    section.add_argument(f"--{f.name}", metavar=metavar, **shown)


def _unknown(word: str, names: list[str], elsewhere: dict[str, str]) -> UserError:
    if not word.startswith("-"):
        return UserError(f"unexpected word {word!r}; quote a path with spaces, give a switch no value")
    name = word.lstrip("-").split("=")[0]
    if name in elsewhere:
        return UserError(f"unknown flag --{name}: it belongs to {elsewhere[name]}")
    near = nearest(name, names).replace("mean ", "mean --")
    return UserError(f"unknown flag {word.split('=')[0]}{near or '; --help lists them all'}")
