"""What all scripts' options share: parsing, and the way to and from JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from options.flags import Flags, nearest
from options.groups import ExperimentFlags
from options.parser import read_command
from util.errors import UserError

Options = TypeVar("Options", bound="ScriptOptions")
SCRIPTS: list[type[ScriptOptions]] = []  # every script's options, in the order of their definition


@dataclass(frozen=True)
class ScriptOptions:
    """Base of a script's options: a frozen dataclass whose fields are groups of flags."""

    SCRIPT: ClassVar[str] = ""
    experiment: ExperimentFlags = field(default_factory=ExperimentFlags)

    def __init_subclass__(cls) -> None:
        SCRIPTS.append(cls)

    @classmethod
    def groups(cls) -> dict[str, type[Flags]]:
        """Field name to group class, in the order of the help."""
        return {f.name: f.default_factory for f in fields(cls)}

    @classmethod
    def parse(cls: type[Options], argv: Sequence[str] | None = None) -> Options:
        """Options from a command line (default: this process's). Raises UserError."""
        argv = sys.argv[1:] if argv is None else argv
        elsewhere = {
            f.name: c.SCRIPT for c in reversed(SCRIPTS) for g in c.groups().values() for f in fields(g)
        }
        summary = (cls.__doc__ or "").splitlines()[0]
        given = read_command(cls.SCRIPT, summary, list(cls.groups().values()), argv, elsewhere)
        values = cls.resolve(given)
        groups = {n: g(**{f.name: values[f.name] for f in fields(g) if f.name in values})
                  for n, g in cls.groups().items()}  # fmt: skip
        options = cls(**groups)
        options.validate()
        options.remarks(given)
        return options

    @classmethod
    def resolve(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The flags given, and those whose default depends on them."""
        return given

    def validate(self) -> None:
        """Raise UserError for flags that contradict each other. Looks at no file."""

    def check_ready(self) -> None:
        """Raise UserError for a file that is not there or a part that this version lacks."""

    def ready(self) -> bool:
        """Whether to go on: False on --dry_run, once the options are printed. Raises as `check_ready`."""
        if self.experiment.dry_run:
            print(self.to_json())
            return False
        self.check_ready()
        return True

    def remarks(self, given: dict[str, Any]) -> None:
        """Tell the user of flags that were given and change nothing."""

    def to_json(self) -> str:
        """The options as text for options.json: {group: {flag: value}}."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls: type[Options], text: str, source: str = "options.json") -> Options:
        """Options as `to_json` wrote them; a flag that is missing takes its default. Raises UserError."""
        try:
            saved = json.loads(text)
        except ValueError as error:
            raise UserError(f"{source}: not JSON ({error}); save the options again") from None
        saved = _known(saved, cls.groups(), source)
        groups = {}
        for name, group in cls.groups().items():
            values = _known(saved.get(name, {}), [f.name for f in fields(group)], f"{source}, {name}")
            groups[name] = group(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        options = cls(**groups)
        options.validate()
        return options


def _known(saved: Any, names: Collection[str], where: str) -> dict[str, Any]:
    if not isinstance(saved, dict):
        raise UserError(f"{where}: holds {type(saved).__name__}; needs a table of {', '.join(names)}")
    for key in saved:
        if key not in names:
            raise UserError(f"{where}: unknown entry {key}{nearest(key, names)}; it is of another version")
    return saved
