"""The demonstration: a tree of 100 clips, 20 of them broken in seven ways; kill -9 three times in mid-run.

    python tests/killed_three_times.py /tmp/demonstration [more flags of scripts/preprocess.py, as --nThreads 2]

Prepares the tree undisturbed and killed, compares every byte, and leaves both folders to be looked at.
"""

from __future__ import annotations

import sys
from pathlib import Path

from broken_tree import REASONS, make_tree
from raw_stand_in import Program, contents

N_CLIPS, KILLED_AFTER = 100, (15, 20, 25)  # clips more than before


def report(name: str, program: Program) -> None:
    status, printed, _ = program.finish()
    print(f"{name}: exit status {status}\n{printed}", flush=True)


def main() -> None:
    folder, more = Path(sys.argv[1]).absolute(), sys.argv[2:]
    folder.mkdir()
    tree = make_tree(folder / "raw", N_CLIPS)
    command = ["scripts/preprocess.py", "--dataset_name", "folder", *more]
    command += ["--dataroot", folder / "raw", "--out"]
    whole, killed = folder / "undisturbed", folder / "killed"
    report("undisturbed", Program([*command, whole], whole))
    for n in KILLED_AFTER:
        program = Program([*command, killed], killed)
        program.wait_for_clips(n)
        program.process.kill()
        program.finish()
        if alive := program.survivors():
            raise SystemExit(f"still alive: {alive}")
        parts = len(list(killed.rglob(".part-*")))
        print(f"killed after {Program.lines(killed)} clips, {parts} unfinished files", flush=True)
    report("the last run", Program([*command, killed], killed))
    same = contents(whole) == contents(killed)
    kinds = {kind: list(tree.values()).count(kind) for kind in ("good", *REASONS)}
    print(f"tree: {kinds}\n{len(contents(whole))} files, the same to the byte: {same}")
    print("leftovers:", [str(p) for p in killed.rglob(".*")])
    raise SystemExit(0 if same else 1)


if __name__ == "__main__":
    main()
