"""Every command of our pages, and of the method's public README and scripts, parses as written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from options import parse_demo, parse_preprocess, parse_test, parse_train

REPO = Path(__file__).resolve().parents[1]
PARSERS = {
    "train.py": parse_train,
    "test_demo.py": parse_test,
    "test_demo_example.py": parse_demo,
    "scripts/preprocess.py": parse_preprocess,
}


def fenced_commands(path: Path) -> list[str]:
    """The commands of a page's ```bash blocks, continued lines joined."""
    blocks = re.findall(r"^```bash\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


COMMANDS = [
    (p.name, c) for p in (REPO / "README.md", *(REPO / "docs").glob("*.md")) for c in fenced_commands(p)
]


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_our_commands_parse(page, command):
    words = shlex.split(command, comments=True)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # CUDA_VISIBLE_DEVICES=0 python ...
        words.pop(0)
    if words[0] in ("git", "cd", "source", "ray"):
        return
    if words[0] == "torchrun":  # its own flags stand before the script
        words = ["python", *words[next(i for i, w in enumerate(words) if w.endswith(".py")) :]]
    assert words[0] in ("bash", "python"), command
    if words[1] == "-m":
        assert (REPO / words[2]).is_dir() or words[2] in ("pip", "pytest")
        return
    assert (REPO / words[1]).is_file(), command
    if words[1] in PARSERS:
        PARSERS[words[1]](words[2:])


def test_readme_has_the_two_commands_first():
    commands = fenced_commands(REPO / "README.md")
    assert commands[:2] == ["bash test_demo_example.sh", "bash run_tests.sh"]


# The public commands: README (training and test commands of both versions) and the scripts beside it, with
# paths and GPU ids filled in. Left out: commands for the authors' own recordings, for LRW, for scripts that
# the public README doesn't name, and one with --no_rt, which no public option file declares.
NONLINEAR = "--adaptive_spade --warp_ref --warp_ani --spade_combine --add_raw_loss"
LINEAR = "--adaptive_spade --warp_ref --warp_ani"
REF_ONLY = "--adaptive_spade --warp_ref"
VOX = "--dataroot /data/voxceleb2 --dataset_name vox"
GRID = "--dataroot /data/grid --dataset_name grid"
LRS = "--dataroot /data/lrs3 --dataset_name lrs"
CREMA = "--dataroot /data/CREMA --dataset_name crema"
DEMO = "--dataroot demo --dataset_name vox"

TRAIN = "--dataset_mode facefore --niter 1000 --niter_single 1001 --n_frames_G 1 --save_epoch_freq 1"
TRAIN += " --continue_train"
GPUS = "--gpu_ids 0,1,2,3,4,5,6,7 --nThreads 64"
TEMPORAL = "--dataset_mode facefore --niter 1000 --niter_step 3 --n_frames_G 2 --continue_train"
PUBLIC_TRAINING = [
    f"--name face8_vox_new {TRAIN} {NONLINEAR} --gpu_ids 0 --batchSize 4 --nThreads 8 --n_shot 8 {VOX}"
    " --display_freq 5000 --use_new --crop_ref",
    f"--name face8_vox_ani_nonlinear_continue --dataset_mode facefore {NONLINEAR} {GPUS} --batchSize 56 {VOX}"
    " --niter 100 --niter_single 100 --n_shot 8 --n_frames_G 1 --save_epoch_freq 1 --display_freq 1000"
    " --continue_train --crop_ref --use_new",
    f"--name face8_vox_new_baseline {TRAIN} {REF_ONLY} --spade_combine --add_raw_loss --gpu_ids 0"
    f" --batchSize 2 --nThreads 4 --n_shot 8 {VOX} --display_freq 5000 --use_new --crop_ref",
    f"--name face8_vox_ani {TRAIN} {LINEAR} {GPUS} --batchSize 72 --n_shot 8 {VOX} --display_freq 5000",
    f"--name face8_grid_ani_retrain {TRAIN} {REF_ONLY} {GPUS} --batchSize 12 --n_shot 1 --ref_ratio 0 {GRID}",
    f"--name face8_grid_ani_retrain_temp {TEMPORAL} {REF_ONLY} --gpu_ids 0,1,2 --batchSize 12 --nThreads 8"
    f" --niter_single 0 --n_shot 1 --ref_ratio 0 --display_freq 1 {GRID}",
    f"--name face8_vox_ani_nonlinear_temp {TEMPORAL} {NONLINEAR} {GPUS} --batchSize 56 --niter_single 6"
    f" {VOX} --n_shot 8 --save_epoch_freq 1 --display_freq 1000 --same_flownet",
    f"--name face8_face_newloader --dataset_mode facefore {LINEAR} --gpu_ids 0 --batchSize 1 --nThreads 0"
    f" {VOX} --niter 500 --niter_single 501 --n_shot 8 --save_epoch_freq 50 --n_frames_G 1",
]

TEST = "--dataset_mode facefore_demo --example --n_frames_G 1 --which_epoch latest --how_many 10"
TEST += " --nThreads 0 --serial_batches"
ONE = "--ref_img_id 0 --n_shot 1"
EIGHT = "--ref_img_id 0,10,20,30,40,50,60,70 --n_shot 8"
THIRTY_TWO = "--ref_img_id " + ",".join(str(3 * i) for i in range(32)) + " --n_shot 32"
PUBLIC_TESTS = [
    f"--name face8_vox_ani {TEST} {LINEAR} {VOX} {ONE} --crop_ref --use_new",  # README
    f"--name face8_vox_new {TEST} {NONLINEAR} {DEMO} --ref_img_id 0 --n_shot 8 --crop_ref --use_new",
    f"--name a {TEST} {NONLINEAR} {DEMO} {ONE} --crop_ref",
    f"--name a {TEST} {NONLINEAR} {DEMO} {ONE} --crop_ref --finetune --finetune_shot 1",
    f"--name a {TEST} {NONLINEAR} {LRS} {THIRTY_TWO} --crop_ref",
    f"--name a {TEST} {NONLINEAR} {LRS} {ONE} --crop_ref",
    f"--name a {TEST} {NONLINEAR} {VOX} {ONE}",
    f"--name a {TEST} {NONLINEAR} {VOX} {EIGHT} --crop_ref",
    f"--name a {TEST} {NONLINEAR} {VOX} {THIRTY_TWO} --crop_ref",
    f"--name a {TEST} {NONLINEAR} {VOX} {EIGHT} --crop_ref --no_warp",
    f"--name a {TEST} {NONLINEAR} {VOX} {EIGHT} --crop_ref --no_atten",
    f"--name a {TEST} {NONLINEAR} {VOX} {ONE} --crop_ref --no_head_motion",
    f"--name a {TEST} {LINEAR} {VOX} {EIGHT} --crop_ref",
    f"--name a {TEST} {REF_ONLY} {GRID} {ONE} --find_largest_mouth",
    f"--name a {TEST} {REF_ONLY} {CREMA} {ONE}",
    f"--name a {TEST} {REF_ONLY} {CREMA} {ONE} --finetune --finetune_shot 2",
]
CLIP = "/data/voxceleb2/unzip/test_video/id00017/01dfn2spqyE/00001_aligned.mp4"
PUBLIC_DEMO = (
    f"--name face8_vox_ani_nonlinear {TEST} {NONLINEAR} {VOX} --ref_dataroot /data/voxceleb2 {ONE}"
    f" --tgt_video_path {CLIP} --ref_dataset vox --ref_video_path {CLIP} --ref_ani_id 10 --finetune"
)


@pytest.mark.parametrize("command", PUBLIC_TRAINING)
def test_public_training_commands_parse(command):
    options = parse_train(shlex.split(command))
    assert options.schedule.model == "vid2vid"
    assert options.generator.warp_ref


@pytest.mark.parametrize("command", PUBLIC_TESTS)
def test_public_test_commands_parse(command):
    options = parse_test(shlex.split(command))
    assert len(options.reference.frames) == options.reference.n_shot


def test_public_demo_command_parses():
    options = parse_demo(shlex.split(PUBLIC_DEMO))
    assert options.reference.ref_video_path == options.driving.tgt_video_path == CLIP
    assert (options.reference.ref_ani_id, options.driving.head_motion) == (10, "target")
    assert options.generator.composition == "nonlinear"


def test_public_commands_are_in_our_readme_word_for_word():
    flags = {f for c in (PUBLIC_TRAINING[0], PUBLIC_DEMO) for f in shlex.split(c) if f.startswith("--")}
    commands = " ".join(fenced_commands(REPO / "README.md")).split()
    assert flags <= set(commands)
