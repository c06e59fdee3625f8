"""Going on with a training: equal to the bit, from any point, and never from the wrong networks."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_training import TinyFaces, tiny_options, tiny_trainer, train

from models.generator_config import GeneratorConfig
from options import TrainOptions
from util import checkpoints
from util.checkpoints import load_tensors
from util.errors import UserError

PROGRAM = Path(__file__).with_name("tiny_training.py")
TEMPORAL = ("--n_frames_G", "2", "--niter_single", "2")


def test_going_on_in_mid_epoch_gives_the_same_losses(tmp_path: Path) -> None:
    flags = ["--niter", "3", *TEMPORAL, "--save_latest_freq", "1"]
    whole = train(tmp_path / "whole", *flags)

    def stop(at: object, result: object) -> None:
        first.append(result.losses)
        if at.step == 2:
            trainer.stop.made = True  # as Ctrl-C does; heard in the step after

    first: list[dict] = []
    trainer = tiny_trainer(tmp_path / "cut", tiny_options(*flags))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(TinyFaces(), stop)
    faces = TinyFaces()
    rest = train(tmp_path / "cut", *flags, "--continue_train", dataset=faces)
    assert len(first) == 3
    assert first + rest == whole  # every number, to the bit
    assert len(faces.read) == 2 * len(rest)  # samples that were done are not read again
    ends = [load_tensors(tmp_path / run / "training.safetensors")[0] for run in ("whole", "cut")]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_killed_at_any_moment_it_goes_on_to_the_same_losses(tmp_path: Path) -> None:
    flags = ["--niter", "8", "--save_latest_freq", "3", "--display_freq", "99", "--save_epoch_freq", "2"]
    whole = train(tmp_path / "whole", *flags)
    log = tmp_path / "losses"
    command = [sys.executable, PROGRAM, tmp_path / "cut", log, *flags, "--continue_train"]
    env = os.environ | {"PYTHONPATH": str(PROGRAM.parents[1])}
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    kill_after = 5 + os.getpid() % 6  # steps
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < kill_after):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left_over = tmp_path / "cut" / ".part-0123.safetensors"  # as a kill while saving leaves it
    left_over.write_bytes(b"half a file")
    after: dict[int, dict] = {}
    trainer = tiny_trainer(tmp_path / "cut", tiny_options(*flags, "--continue_train"))
    trainer.fit(TinyFaces(), lambda at, result: after.update({at.step: result.losses}))
    assert len(after) >= 20
    assert max(after) == len(whole)
    assert all(losses == whole[step - 1] for step, losses in after.items())
    assert not left_over.exists()


def test_sigterm_saves_and_ends(tmp_path: Path) -> None:
    log = tmp_path / "losses"
    env = os.environ | {"PYTHONPATH": str(PROGRAM.parents[1])}
    command = [sys.executable, PROGRAM, tmp_path / "run", log, "--niter", "500", "--nThreads", "1"]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not log.exists() or not log.read_text():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)  # the reader process gets it, too, as from torchrun
    error = process.communicate(timeout=30)[1]
    assert "KeyboardInterrupt" in error  # run_script makes one line of it
    note = load_tensors(tmp_path / "run" / "training.safetensors")[1]
    assert note["step"] == json.loads(log.read_text().splitlines()[-1])["step"]


def test_a_finished_training_goes_on_with_more_epochs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tmp_path / "whole", "--niter", "2")
    first = train(tmp_path / "two", "--niter", "1", "--continue_train")
    assert "nothing to go on from" in capsys.readouterr().err
    assert train(tmp_path / "two", "--niter", "1", "--continue_train") == []
    assert "all 1 epochs are done; give a larger --niter" in capsys.readouterr().err
    assert first + train(tmp_path / "two", "--niter", "2", "--continue_train") == whole


def test_checkpoint_of_the_generator(tmp_path: Path) -> None:
    train(tmp_path, "--niter", "1")
    _, note = load_tensors(tmp_path / "latest_G.safetensors")
    assert note["format"] == "fewshot"
    config = GeneratorConfig.from_json_dict(note["config"])
    assert config.ngf == 4
    assert (note["step"], note["loss"]["lambda_feat"]) == (4, 10.0)
    saved = TrainOptions.from_json((tmp_path / "options.json").read_text())
    assert saved == tiny_options("--niter", "1")


@pytest.mark.parametrize(
    ("flag", "value"), [("--ngf", "8"), ("--ndf", "8"), ("--mesh_flow", "off"), ("--n_layers_D", "3")]
)
def test_other_networks_are_refused_by_the_flags_name(tmp_path: Path, flag: str, value: str) -> None:
    train(tmp_path, "--niter", "1")
    before = (tmp_path / "options.json").read_text()
    with pytest.raises(UserError, match=f"{flag}: asks for .*{tmp_path} was trained with"):
        train(tmp_path, "--niter", "2", "--continue_train", flag, value)
    assert (tmp_path / "options.json").read_text() == before


def test_damaged_state_is_refused(tmp_path: Path) -> None:
    train(tmp_path, "--niter", "1")
    path = tmp_path / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"--continue_train .*damaged"):
        train(tmp_path, "--niter", "2", "--continue_train")


@pytest.mark.parametrize("lasting", [False, True], ids=["for_a_while", "to_the_end"])
def test_full_disk_keeps_the_last_good_checkpoint(
    tmp_path: Path, lasting: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, fails = Path.write_bytes, []

    def full(path: Path, data: bytes) -> int:
        if path.suffix == ".safetensors" and tries.pop(0):
            fails.append(path)
            path.touch()
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, data)

    tries = [False, False, True] + [lasting] * 30
    monkeypatch.setattr(checkpoints.Path, "write_bytes", full)
    flags = ["--niter", "2", "--save_latest_freq", "2", "--save_epoch_freq", "9"]
    if lasting:
        with pytest.raises(UserError, match=f"{tmp_path}: no space is left there"):
            train(tmp_path, *flags)
    else:
        train(tmp_path, *flags)
    assert fails
    assert not list(tmp_path.glob(".part-*"))
    told = capsys.readouterr().err
    assert "step 4 was not saved, training goes on" in told
    assert "no space is left" in told
    note = load_tensors(tmp_path / "training.safetensors")[1]
    assert note["step"] == (2 if lasting else 8)
