"""The set-up scripts, the pinned lists and the embedded input."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO
from PIL import Image

from util.audio import read_voice
from util.image import read_image

SCRIPTS = ["setup.sh", "test_demo_example.sh", "run_tests.sh", ".ci/run"]


def bash(script, *args, cwd=REPO, **env):
    return subprocess.run(
        ["/bin/bash", str(script), *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def bare(tmp_path):
    """A copy of the set-up in a folder with a space, and a PATH of the few tools that any system has."""
    copy, tools = tmp_path / "a clone", tmp_path / "tools"
    copy.mkdir()
    tools.mkdir()
    for name in ("setup.sh", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(REPO / name, copy)
    for name in ("cat", "cksum", "dirname", "rm", "sed", "tail", "touch", "uname"):
        (tools / name).symlink_to(shutil.which(name))
    (tools / "id").write_text("#!/bin/sh\necho 1000\n")  # not root, so apt-get is out
    (tools / "id").chmod(0o755)
    return copy, tools


def fake_python(tools: Path, body: str) -> None:
    (tools / "python3").write_text(f"#!/bin/sh\n{body}\n")
    (tools / "python3").chmod(0o755)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_parse_and_run_from_anywhere(name):
    assert bash("-n", str(REPO / name)).returncode == 0
    assert "cd " in (REPO / name).read_text()
    assert (REPO / name).stat().st_mode & 0o111


@pytest.mark.parametrize(("version", "found"), [(None, "none"), ("3.9", "3.9")])
def test_no_or_old_python_is_told_in_one_line(bare, version, found):
    copy, tools = bare
    if version:
        fake_python(tools, f'case "$*" in *sys.exit*) exit 1;; *) echo {version};; esac')
    ran = bash(copy / "setup.sh", PATH=str(tools))
    assert ran.returncode == 2
    assert ran.stderr == (
        f"error: Python 3.10 to 3.14 is needed, found: {found}; install one (Debian, Ubuntu: apt-get install "
        "python3 python3-venv) or set PYTHON to it\n"
    )


def test_missing_libraries_are_told_in_one_line(bare):
    copy, tools = bare
    fake_python(tools, 'case "$1" in -c) exit 0;; -) printf "libegl1 libgles2 ";; esac')
    ran = bash(copy / "setup.sh", PATH=str(tools))
    assert ran.returncode == 2
    assert ran.stderr == (
        "error: system libraries are missing; run: sudo apt-get install --no-install-recommends libegl1 "
        "libgles2 (Fedora: sudo dnf install libglvnd-egl libglvnd-gles)\n"
    )


def test_a_missing_venv_module_is_told_in_one_line(bare):
    copy, tools = bare
    fake_python(tools, 'case "$*" in *ensurepip*) exit 1;; esac')
    ran = bash(copy / "setup.sh", PATH=str(tools))
    assert ran.returncode == 2
    assert ran.stderr == "error: Python's venv module is missing; run: sudo apt-get install python3-venv\n"
    assert not (copy / ".venv").exists()


@pytest.mark.skipif(
    not (REPO / ".venv" / ".installed-requirements-dev").exists(), reason="not set up by setup.sh"
)
def test_a_second_run_installs_nothing():
    start = time.monotonic()
    ran = subprocess.run(["bash", "setup.sh", "--dev"], cwd=REPO, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr, ran.stdout) == (0, "", "")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "requirements-ray.txt"])
def test_every_package_is_pinned_once_per_python(name):
    seen = []
    for line in (REPO / name).read_text().splitlines():
        line = line.split("#")[0].strip()
        if line:
            match = re.fullmatch(r'([\w-]+)==[\w.]+(; python_version (?:>=|<) "3\.11")?', line)
            assert match, line
            seen.append((match[1], match[2]))
    assert len(set(seen)) == len(seen)
    everywhere = {package for package, marker in seen if not marker}
    assert all(package not in everywhere for package, marker in seen if marker)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the pins for this Python differ")
def test_what_is_installed_is_what_is_pinned():
    from importlib.metadata import version

    for line in (REPO / "requirements.txt").read_text().splitlines():
        match = re.match(r"([\w-]+)==([\w.]+)", line)
        if match and "< " not in line.split("#")[0]:
            assert version(match[1]).split("+")[0] == match[2], line


def test_the_embedded_portrait(portrait):
    assert Image.open(portrait).format == "PNG"
    assert read_image(portrait, "--ref_video_path").shape == (512, 512, 3)


def test_the_embedded_voice_speaks_and_pauses():
    voice = read_voice(REPO / "demo" / "voice.flac", "--audio_path").samples
    assert 4 <= len(voice) / 16000 <= 6
    level = np.sqrt((voice[: len(voice) // 640 * 640].reshape(-1, 640) ** 2).mean(1))
    assert level[:7].max() < 0.01
    assert level[-7:].max() < 0.01
    assert level[10:-10].max() > 0.1
    inside = level[10:-10] < 0.01
    assert max(len(run) for run in "".join(map(str, inside.astype(int))).split("0")) >= 5  # 0.2 s of pause
