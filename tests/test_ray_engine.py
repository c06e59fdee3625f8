"""The run on a local Ray of two workers: killed and gone on with, it ends as the run without Ray does."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest
from raw_stand_in import Program, StandInSettings, contents, prepare, raw_clips, write_raw

from data.preprocessing.ray_engine import RayEngine
from data.preprocessing.run import RunPlan, prepare_clips
from util.errors import UserError

# ray::DashboardAgent and ray::RuntimeEnvAgent see late, on a busy machine, that their raylet is gone.
RAYS_OWN = "Agent"
RAW = {f"s{i % 3 + 1}/c{i:02d}": "slowly" for i in range(40)}
RAW |= {"s1/a": "bad cut off", "s1/exit": "exit", "s2/fault": "segfault", "s3/mistake": "mistake"}


def test_without_the_package_one_line_says_how_to_install_it(monkeypatch):
    real = builtins.__import__

    def without_ray(name, *rest):
        if name == "ray":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    with pytest.raises(UserError, match=r"--engine ray: .* -r requirements-ray.txt"):
        RayEngine(str, 1, 0, "local")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_killed_and_gone_on_with_it_is_as_if_undisturbed_and_local(tmp_path):
    pytest.importorskip("ray", reason="the optional extra of requirements-ray.txt isn't installed")
    raw, out = write_raw(tmp_path / "raw", RAW), tmp_path / "out"
    program = Program.of_stand_in(raw, out, "2", "ray")
    program.wait_for_clips(8)
    assert any("raylet" in line for line in program.survivors(0))  # it can see them
    program.process.kill()
    program.finish()
    assert not program.survivors(30, but=RAYS_OWN)
    program = Program.of_stand_in(raw, out, "2", "ray")
    status, printed, errors = program.finish()
    assert status == 0, errors
    assert int(printed.split("skipped, ")[1].split()[0]) >= 8  # were done before
    assert not program.survivors(30, but=RAYS_OWN)
    plan = RunPlan(n_processes=2)
    prepare_clips(raw_clips(raw), tmp_path / "local", raw, StandInSettings(), None, plan, prepare)
    assert contents(out) == contents(tmp_path / "local")


def test_a_cluster_that_does_not_answer_is_told_of(tmp_path):
    pytest.importorskip("ray", reason="the optional extra of requirements-ray.txt isn't installed")
    engine = RayEngine(str, 1, 0, "auto")
    with pytest.raises(UserError, match="--address auto: no Ray cluster can be used there"):
        list(engine.results(["a"]))
    engine.close()
