"""Two processes with half the batch each do what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_training import tiny_options, tiny_trainer, train

from models import distributed
from models.distributed import World, launch, share_out
from util.errors import UserError

PROGRAM = Path(__file__).with_name("tiny_training.py")
RELATIVE = 1e-4  # sums over the batch are added in another order
# While no patch is judged beyond the hinge's margin, the gradient of the critics' output bias is 0 but for rounding,
# and Adam makes full steps (2e-4 each) of its sign.
ADVERSARIAL = 2e-3


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(PROGRAM.parents[1]))


@pytest.mark.usefixtures("alone")
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    flags = "--niter 2 --n_frames_G 2 --niter_single 1 --display_freq 2 --lr 0.0001 --gan_start 2".split()
    flags += ["--epoch_samples", "6"]
    whole = train(tmp_path / "one", *flags)
    status = launch(2, [str(PROGRAM), str(tmp_path / "two"), str(tmp_path / "losses"), *flags])
    assert status == 0
    losses = [json.loads(line) for line in (tmp_path / "losses").read_text().splitlines()]
    assert [line.pop("step") for line in losses] == list(range(1, len(whole) + 1))
    for step, (mine, theirs) in enumerate(zip(losses, whole, strict=True), 1):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            loose = ADVERSARIAL if name.startswith(("gan", "feat", "d_")) and step > 4 else 1e-6
            assert value == pytest.approx(theirs[name], rel=RELATIVE, abs=loose), (step, name)
    assert (tmp_path / "two" / "web" / "index.html").is_file()
    assert len(list((tmp_path / "two" / "curves").iterdir())) == 1  # the first process's only


@pytest.mark.usefixtures("alone")
def test_torchrun_starts_it_and_an_error_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [
        str(PROGRAM),
        str(tmp_path / "run"),
        str(tmp_path / "losses"),
        "--batchSize",
        "3",
        "--niter",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "--batchSize 3: 2 processes share it" in done.stderr


@pytest.mark.usefixtures("alone")
def test_launch_tells_a_failure_and_stops_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distributed, "_ALONE_S", 0.0)
    script = tmp_path / "fails.py"
    script.write_text(
        "import os, sys, time\nif os.environ['RANK'] == '1':\n    sys.exit('no such thing')\ntime.sleep(60)\n"
    )
    assert launch(2, [str(script)]) == 1
    assert "no such thing" in capsys.readouterr().err


def test_gpus_are_shared_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(distributed, "launch", lambda n, command: started.append((n, command)) or 3)
    share_out((0, 1), ["train.py"])  # no GPU there
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    share_out((1,), ["train.py"])
    assert started == []
    with pytest.raises(UserError, match=r"--gpu_ids 0,2: this machine has 2 GPU"):
        share_out((0, 2), ["train.py"])
    with pytest.raises(SystemExit) as end:
        share_out((0, 1), ["train.py"])
    assert (end.value.code, started) == (3, [(2, ["train.py"])])
    monkeypatch.setattr(os, "environ", os.environ | {"RANK": "0", "WORLD_SIZE": "2"})
    share_out((0, 1), ["train.py"])
    assert len(started) == 1


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--batchSize 3: 2 processes share it; give a multiple of 2"):
        tiny_trainer(tmp_path, tiny_options("--batchSize", "3"), World(torch.device("cpu"), 0, 2))
