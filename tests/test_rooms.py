"""The house rules that ruff does not know: who may import whom, lengths, no pickle, where `assert` stands.

design.md, section 2, and style.md, sections 1, 5 and 7.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 59
NOT_OURS = {"results", "runs", "cache", "checkpoints", "__pycache__", "build", "dist"}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}

_BASE = {"util", "third_party"}
_LOWER = {*_BASE, "options", "face"}
MAY_IMPORT = {  # util <- options <- face <- data, models <- talking_head <- scripts
    "util": {"util"},
    "third_party": {"third_party", "util"},
    "options": {"options", "util"},
    "face": _LOWER,
    "data": {*_LOWER, "data"},
    "models": {*_LOWER, "models"},
    "talking_head": {*_LOWER, "data", "models", "talking_head"},
}
SCRIPTS_MAY = {*MAY_IMPORT["talking_head"]}
SCRIPT_FOLDERS = ("scripts", "benchmarks", "demo", "docs")


def python_files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not any(p in NOT_OURS or p.startswith(".") for p in parts):
            yield path


def room_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).parts
    return parts[0] if len(parts) > 1 else path.stem


def our_rooms(root: Path) -> set[str]:
    """Every top name that an import of ours can begin with."""
    scripts = {p.stem for p in root.glob("*.py")}
    return {*MAY_IMPORT, *SCRIPT_FOLDERS, "tests", *scripts}


def imports_of(tree: ast.AST, path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported, relative and literal dynamic imports included."""
    package = path.relative_to(root).parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{stem}.{alias.name}".lstrip(".")) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called in ("importlib.import_module", "import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def check_imports(tree: ast.AST, path: Path, root: Path) -> Iterator[str]:
    room, rooms = room_of(path, root), our_rooms(root)
    may = rooms if room == "tests" else MAY_IMPORT.get(room, SCRIPTS_MAY)
    for line, name in imports_of(tree, path, root):
        top = name.split(".")[0]
        if top in PICKLES:
            yield f"{line}: imports {top}; arrays go into npz or safetensors, options into JSON"
        if top in rooms and top not in may:
            yield f"{line}: {room} imports {name}; it may import {', '.join(sorted(may))}"
        if room == "options":
            if top == "util" and not f"{name}.".startswith("util.errors."):
                yield f"{line}: options imports {name}; of util it may import util.errors only"
            if top not in rooms and top not in sys.stdlib_module_names:
                yield f"{line}: options imports {name}; only the standard library keeps --help instant"


def check_lengths(tree: ast.AST, source: str) -> Iterator[str]:
    n_lines = len(source.splitlines())
    if n_lines > MAX_FILE_LINES:
        yield f"1: file of {n_lines} lines; at most {MAX_FILE_LINES}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{node.lineno}: {node.name} has {length} lines; at most {MAX_FUNCTION_LINES}"


def _flag(call: ast.Call, name: str) -> object:
    return next(
        (k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None
    )


def check_loads(tree: ast.AST) -> Iterator[str]:
    """torch.load without weights_only=True, by whatever name torch goes, and numpy's allow_pickle."""
    torches, loads = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            torches |= {a.asname or a.name for a in node.names if a.name == "torch"}
        elif isinstance(node, ast.ImportFrom) and node.module in ("torch", "torch.serialization"):
            loads |= {a.asname or a.name for a in node.names if a.name == "load"}
    loads |= {f"{t}.load" for t in torches} | {f"{t}.serialization.load" for t in torches}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) in loads and _flag(node, "weights_only") is not True:
                yield f"{node.lineno}: torch.load without weights_only=True"
            if (
                any(k.arg == "allow_pickle" for k in node.keywords)
                and _flag(node, "allow_pickle") is not False
            ):
                yield f"{node.lineno}: allow_pickle; arrays of numbers need none"


def check_asserts(tree: ast.AST, room: str) -> Iterator[str]:
    """`assert` is for our own mistakes: never where values come from the user, and always with its reason."""
    user_facing = room not in MAY_IMPORT or room == "options"
    for node in ast.walk(tree):
        if room != "tests" and isinstance(node, ast.Assert):
            if user_facing:
                yield f"{node.lineno}: assert in {room}; raise UserError"
            elif node.msg is None:
                yield f"{node.lineno}: assert without a reason; say what mistake of ours it catches"


def violations(root: Path) -> list[str]:
    """All breaches in the tree below `root`, each "path:line: what"."""
    found = []
    for path in python_files(root):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source, str(path))
        room = room_of(path, root)
        breaches = [
            *check_imports(tree, path, root),
            *check_lengths(tree, source),
            *check_loads(tree),
            *check_asserts(tree, room),
        ]
        found += [f"{path.relative_to(root).as_posix()}:{b}" for b in breaches]
    return found


def test_house_rules_hold() -> None:
    assert list(python_files(REPO)), "no Python files found: the walk itself is broken"
    assert violations(REPO) == []


GOOD_TREE = {
    "util/errors.py": "import sys\n",
    "options/flags.py": "import argparse\nfrom util.errors import UserError\nfrom options import other\n",
    "options/other.py": "import dataclasses\n",
    "face/pose.py": "import numpy\nfrom options.flags import x\nfrom .mesh import y\n",
    "face/mesh.py": "assert True, 'bases are made by us'\n",
    "data/clips.py": "from face import pose\nimport data.lists\n",
    "models/net.py": "import torch\nfrom third_party.flownet2 import net\ntorch.load('a', weights_only=True)",
    "talking_head.py": "from models.net import Net\nfrom data.clips import Clips\n",
    "train.py": "from talking_head import TalkingHead\n",
    "scripts/evaluate.py": "from talking_head import TalkingHead\nimport numpy\n",
    "tests/test_a.py": "import train\nassert train\n",
    ".venv/lib/bad.py": "import pickle\n",
}

BREACHES = [
    ("util/a.py", "from face.pose import x\n", "util imports face.pose.x"),
    ("options/a.py", "import numpy as np\n", "only the standard library"),
    ("options/a.py", "from util import types\n", "util.errors only"),
    ("options/a.py", "def f():\n    import torch\n", "only the standard library"),
    ("face/a.py", "from models.net import Net\n", "face imports models.net.Net"),
    ("face/a.py", "import data.clips\n", "face imports data.clips"),
    ("face/a.py", "from ..models import net\n", "face imports models.net"),
    ("face/a.py", "import importlib\nimportlib.import_module('models.net')\n", "face imports models.net"),
    ("data/a.py", "from models import net\n", "data imports models.net"),
    ("models/a.py", "def f():\n    from data.clips import x\n", "models imports data.clips.x"),
    ("models/a.py", "from talking_head import TalkingHead\n", "models imports talking_head"),
    ("talking_head.py", "import scripts.evaluate\n", "talking_head imports scripts.evaluate"),
    ("scripts/a.py", "from scripts.evaluate import x\n", "scripts imports scripts.evaluate.x"),
    ("scripts/a.py", "import train\n", "scripts imports train"),
    ("train.py", "import test_demo\n", "train imports test_demo"),
    ("face/a.py", "import tests.helpers\n", "face imports tests.helpers"),
    ("third_party/flownet2/a.py", "from models import net\n", "third_party imports models.net"),
    ("face/a.py", "import pickle\n", "imports pickle"),
    ("tests/a.py", "from pickle import loads\n", "imports pickle"),
    ("models/a.py", "import torch\ntorch.load('x')\n", "weights_only=True"),
    ("models/a.py", "import torch as th\nth.load('x', weights_only=False)\n", "weights_only=True"),
    ("models/a.py", "from torch import load\nload('x')\n", "weights_only=True"),
    ("data/a.py", "import numpy as np\nnp.load('x', allow_pickle=True)\n", "allow_pickle"),
    ("scripts/a.py", "assert True, 'a number'\n", "raise UserError"),
    ("options/a.py", "assert True, 'a number'\n", "raise UserError"),
    ("face/a.py", "assert True\n", "without a reason"),
    ("face/a.py", "x = 1\n" * 401, "file of 401 lines"),
    ("face/a.py", "def f():\n" + "    x = 1\n" * 59, "f has 60 lines"),
]


@pytest.fixture
def good_tree(tmp_path: Path) -> Path:
    for name, source in GOOD_TREE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    (tmp_path / "test_demo.py").write_text("import sys\n")
    return tmp_path


def test_lawful_tree_passes(good_tree: Path) -> None:
    assert violations(good_tree) == []


@pytest.mark.parametrize(("name", "source", "expected"), BREACHES)
def test_breach_is_found(good_tree: Path, name: str, source: str, expected: str) -> None:
    path = good_tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    found = violations(good_tree)
    assert len(found) == 1
    assert found[0].startswith(name)
    assert expected in found[0]


@pytest.mark.parametrize(
    ("path", "ok"),
    [("face/a.py", "def f():\n" + "    x = 1\n" * 58), ("face/b.py", "x = 1\n" * 400)],
)
def test_longest_lawful_lengths_pass(good_tree: Path, path: str, ok: str) -> None:
    (good_tree / path).write_text(ok)
    assert violations(good_tree) == []
