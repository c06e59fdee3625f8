"""`python -m options > docs/flags.md`: the table of flags, made from the dataclasses."""

from __future__ import annotations

from dataclasses import Field, fields

import options  # noqa: F401  fills SCRIPTS
from options.base import SCRIPTS
from options.flags import default_of, needs

HEAD = """# Flags

Made by `python -m options > docs/flags.md` from the dataclasses in `options`; a test keeps it current.
Every flag has the spelling of the method's public code, or is ours where that has none.
*Learnt*: matters only where the learnt generator makes the frames (`--netG fewshot`, and all training).
"""


def table() -> str:
    """All flags of all scripts as Markdown, one table per group of flags."""
    owners: dict[tuple[str, str], list[str]] = {}
    flags: dict[tuple[str, str], Field] = {}
    for script in sorted(SCRIPTS, key=lambda s: "/" in s.SCRIPT):  # those of the first folder first
        for name, group in script.groups().items():
            for f in fields(group):
                owners.setdefault((name, f.name), []).append(script.SCRIPT.removesuffix(".py"))
                flags.setdefault((name, f.name), f)
    parts = [HEAD]
    for group_name in dict.fromkeys(name for name, _ in flags):
        parts.append(
            f"\n## {group_name}\n\n| flag | takes | default | what it does | in |\n|---|---|---|---|---|\n"
        )
        for (name, flag_name), f in flags.items():
            if name == group_name:
                what = f.metadata["help"] + (" *Learnt.*" if f.metadata["learnt"] else "")
                scripts = ", ".join(owners[name, flag_name])
                parts.append(f"| `--{flag_name}` | {needs(f)} | {default_of(f)} | {what} | {scripts} |\n")
    return "".join(parts)


if __name__ == "__main__":
    print(table(), end="")
