"""Options: every flag parses and means what is said; a refusal is one line with flag, value and need."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from options import (
    DemoOptions,
    PreprocessOptions,
    TestOptions,
    TrainOptions,
    parse_demo,
    parse_test,
    parse_train,
)
from options.__main__ import table
from options.flags import Flags
from options.groups import EMOTIONS
from util.errors import UserError
from util.types import EMOTIONS as LIBRARY_EMOTIONS

REPO = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "train.py": TrainOptions,
    "test_demo.py": TestOptions,
    "test_demo_example.py": DemoOptions,
    "scripts/preprocess.py": PreprocessOptions,
}
DRIVEN = ["--ref_video_path", "me.png", "--audio_path", "voice.wav"]

SHARED = "name dataset_mode dataset_name dataroot gpu_ids batchSize nThreads serial_batches n_frames_G n_shot"
SHARED += " which_epoch warp_ref warp_ani spade_combine use_new no_warp no_atten adaptive_spade add_raw_loss"
SHARED += " crop_ref seed netG dry_run"
DEMO = "ref_img_id how_many example finetune tgt_video_path ref_video_path ref_dataroot ref_dataset"
DEMO += " ref_ani_id audio_path head_motion head_motion_scale emotion emotion_intensity blink full_frame"
DEMO += " results_dir resolution"
TRAIN = "niter niter_single save_epoch_freq display_freq continue_train model"


def names_of(cls: type) -> set[str]:
    return {f.name for group in cls.groups().values() for f in dataclasses.fields(group)}


def refusal(parse, *argv: str) -> str:
    with pytest.raises(UserError) as caught:
        parse([*argv])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def run(script: str, *argv: str, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run a script; `python`: arguments of the interpreter itself."""
    return subprocess.run([sys.executable, *python, script, *argv], cwd=REPO, capture_output=True, text=True)


def test_every_flag_of_the_design_is_where_it_belongs():
    assert names_of(TrainOptions) >= {*SHARED.split(), *TRAIN.split()}
    assert names_of(DemoOptions) >= {*SHARED.split(), *DEMO.split()}
    assert names_of(TestOptions) == names_of(DemoOptions)


@pytest.mark.parametrize("cls", SCRIPTS.values())
def test_no_flag_is_defined_twice_in_a_script_and_defaults_are_valid(cls):
    names = [f.name for group in cls.groups().values() for f in dataclasses.fields(group)]
    assert len(names) == len(set(names))
    for group in cls.groups().values():
        assert issubclass(group, Flags)
        group()


def test_emotions_are_the_librarys():
    assert EMOTIONS == LIBRARY_EMOTIONS


def test_values_arrive_typed():
    options = parse_demo([*DRIVEN, "--ref_img_id", "0,16,32", "--gpu_ids", "0,1", "--emotion_intensity", ".5",
                          "--emotion", "sad", "--resolution", "512", "--ref_ani_id", "10"])  # fmt: skip
    assert options.reference.ref_img_id == (0, 16, 32)
    assert options.reference.n_shot == 3
    assert options.reference.ref_ani_id == 10
    assert options.experiment.gpu_ids == (0, 1)
    assert options.experiment.device == "cuda:0"
    assert options.driving.emotion_intensity == 0.5
    assert options.output.resolution == 512
    assert options.video_path == Path("results/demo/test.mp4")
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.output.resolution = 128


def test_cpu_and_default_device():
    assert parse_demo([*DRIVEN, "--gpu_ids", "-1"]).experiment.device == "cpu"
    assert parse_demo(DRIVEN).experiment.device == "auto"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), ("fewshot", "linear", True)),
        (("--use_new",), ("attention", "linear", True)),
        (("--use_new", "--no_atten", "--spade_combine"), ("mean", "nonlinear", True)),
        (("--no_atten", "--no_warp"), ("mean", "linear", False)),
    ],
)
def test_switches_become_words(argv, words):
    generator = parse_train(argv).generator
    assert (generator.embedding, generator.composition, generator.warped) == words


def test_one_reference_frame_is_repeated():
    assert parse_demo([*DRIVEN, "--n_shot", "3", "--ref_img_id", "7"]).reference.frames == (7, 7, 7)
    assert parse_demo([*DRIVEN, "--ref_img_id", "1,2"]).reference.frames == (1, 2)


def test_head_motion_follows_what_drives():
    assert parse_demo(DRIVEN).driving.head_motion == "audio"
    target = ["--ref_video_path", "me.png", "--tgt_video_path", "clip.mp4"]
    assert parse_demo(target).driving.head_motion == "target"
    assert parse_demo([*target, "--head_motion", "audio"]).driving.head_motion == "audio"
    assert parse_demo([*DRIVEN, "--no_head_motion"]).driving.head_motion == "still"
    assert parse_demo([*DRIVEN, "--head_motion", "nod.csv"]).driving.head_motion == "nod.csv"


def test_example_fills_in_only_what_is_missing():
    options = parse_demo(["--example"])
    assert Path(options.reference.ref_video_path).name == "portrait.png"
    assert Path(options.driving.audio_path).parent.name == "demo"
    options = parse_demo(["--example", "--ref_video_path", "me.png", "--tgt_video_path", "clip.mp4"])
    assert (options.reference.ref_video_path, options.driving.audio_path) == ("me.png", "")


REFUSED = [
    (("--nshot", "3"), "unknown flag --nshot; did you mean --n_shot?"),
    (("--nthreads", "3"), "unknown flag --nthreads; did you mean --nThreads?"),
    (("--n_sho", "3"), "unknown flag --n_sho; did you mean --n_shot?"),  # no abbreviations
    (("--qqq",), "unknown flag --qqq; --help lists them all"),
    (("--niter", "3"), "unknown flag --niter: it belongs to train.py"),
    (("stray",), "unexpected word 'stray'"),
    (("--example=yes",), "--example: takes no value"),
    (("--n_shot",), "--n_shot: its value is missing"),
    (("--audio_path", ""), "--audio_path: an empty value"),
    (("--emotion", "hapy"), "--emotion hapy: needs one of neutral, happy"),
    (("--emotion", "hapy"), "did you mean happy?"),
    (("--dataset_name", "lrw"), "--dataset_name lrw: needs one of vox, lrs, grid, crema"),
    (("--emotion_intensity", "1.5"), "--emotion_intensity 1.5: needs a number from 0.0 to 1.0"),
    (("--emotion_intensity", "nan"), "--emotion_intensity nan: needs a number from 0.0 to 1.0"),
    (("--head_motion_scale", "-1"), "--head_motion_scale -1.0: needs a number from 0.0 to 3.0"),
    (("--head_motion_scale", "inf"), "--head_motion_scale inf: needs"),
    (("--n_shot", "0"), "--n_shot 0: needs a whole number from 1 to 64"),
    (("--n_shot", "2.5"), "--n_shot 2.5: needs a whole number from 1 to 64"),
    (("--n_shot", "9" * 5000), "..."),
    (("--resolution", "250"), "--resolution 250: needs a multiple of 16 from 128 to 1024"),
    (("--resolution", "2048"), "--resolution 2048: needs a multiple of 16 from 128 to 1024"),
    (("--ref_img_id", "0,x"), "--ref_img_id 0,x: needs whole numbers from 0 with commas"),
    (("--ref_img_id", "-3"), "--ref_img_id -3: needs whole numbers from 0"),
    (("--ref_ani_id", "-1"), "--ref_ani_id -1: needs a whole number, 0 or more"),
    (("--seed", "-1"), "--seed -1: needs a whole number from 0 to 4294967295"),
    (("--gpu_ids", "-2"), "--gpu_ids -2: needs whole numbers from -1"),
    (("--gpu_ids", "0,-1"), "--gpu_ids: -1 (the CPU) stands alone"),
    (("--gpu_ids", "0,0"), "a GPU is named twice"),
    (("--which_epoch", "last"), "--which_epoch last: needs latest or an epoch's number"),
    (("--name", "../x"), "--name '../x': needs a plain folder name"),
    (("--n_shot", "8", "--ref_img_id", "0,1,2"), "--n_shot 8: --ref_img_id names 3 frames"),
    (("--head_motion", "adio"), "did you mean audio?"),
    (("--head_motion", "pose.txt"), "needs audio, target, still or a .csv or .npy file"),
    (("--head_motion", "target"), "--head_motion target: needs --tgt_video_path"),
    (("--head_motion", "audio", "--no_head_motion"), "--no_head_motion: contradicts --head_motion audio"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "message"), REFUSED)
def test_refused(argv, message):
    assert message in refusal(parse_demo, *DRIVEN, *argv)


def test_something_to_show_and_something_to_drive_it_are_needed():
    assert "--ref_video_path: not given" in refusal(parse_demo, "--audio_path", "v.wav")
    assert "--audio_path: not given, nor" in refusal(parse_demo, "--ref_video_path", "me.png")
    assert "--dataroot: not given" in refusal(parse_test)


def test_remarks_of_flags_that_change_nothing(capsys):
    parse_demo([*DRIVEN, "--emotion_intensity", "0.5", "--warp_ref"])
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "note: --emotion_intensity changes nothing without --emotion",
        "note: --netG geometric makes no use of --warp_ref",
    ]
    parse_demo([*DRIVEN, "--emotion", "sad", "--emotion_intensity", "0.5"])
    assert not capsys.readouterr().err


def test_files_are_looked_for_before_work_begins(tmp_path):
    portrait, voice = tmp_path / "me.png", tmp_path / "voice.wav"
    portrait.touch(), voice.touch()
    ready = ["--ref_video_path", str(portrait), "--audio_path", str(voice)]
    parse_demo(ready).check_ready()
    parse_demo(["--ref_dataroot", str(tmp_path), "--ref_video_path", "me.png", *ready[2:]]).check_ready()
    for argv, message in (
        (["--ref_video_path", str(tmp_path)], "is a folder"),
        (["--audio_path", "a" * 5000], "no such file"),
        (["--audio_path", "none.wav"], "--audio_path none.wav: no such file"),
        (["--tgt_video_path", "none.mp4"], "--tgt_video_path none.mp4: no such file"),
        (["--head_motion", "none.csv"], "--head_motion none.csv: no such file"),
    ):
        with pytest.raises(UserError, match=message.replace(".", r"\.")):
            parse_demo([*ready, *argv]).check_ready()


def test_a_batch_gives_the_options_of_each_video():
    batch = parse_test(["--dataroot", "clips", "--name", "night", "--example"])
    clip = batch.for_clip(Path("clips/ann.mp4"))
    assert clip.driving.tgt_video_path == clip.reference.ref_video_path == str(Path("clips/ann.mp4"))
    assert (clip.driving.head_motion, clip.driving.audio_path) == ("target", "")
    assert clip.video_path == Path("results/night/ann/test.mp4")
    apart = batch.for_clip(Path("clips/ann.mp4"), Path("audio/ann.wav"))
    assert (apart.driving.tgt_audio_path, apart.driving.audio_path) == (str(Path("audio/ann.wav")), "")
    driven = parse_test(["--dataroot", "clips", "--tgt_video_path", "b.mp4"])
    assert driven.for_clip(Path("clips/ann.mp4"), Path("audio/ann.wav")).driving.tgt_audio_path == ""
    nested = batch.for_clip(Path("clips/id1/v2/001.mp4"))
    assert nested.video_path == Path("results/night/id1_v2_001/test.mp4")
    photo = batch.for_clip(Path("clips/bob.PNG"))
    assert (photo.driving.head_motion, photo.driving.tgt_video_path) == ("audio", "")
    assert photo.driving.audio_path
    with pytest.raises(UserError, match="--audio_path: not given"):
        parse_test(["--dataroot", "clips"]).for_clip(Path("clips/bob.png"))


@pytest.mark.parametrize(("parse", "argv"), [
    (parse_demo, [*DRIVEN, "--ref_img_id", "1,2", "--gpu_ids", "0", "--head_motion", "né à.csv"]),
    (parse_test, ["--dataroot", "clips"]),
    (parse_train, ["--model", "expression", "--dataroot", "pack"]),
])  # fmt: skip
def test_json_there_and_back(parse, argv):
    options = parse(argv)
    assert type(options).from_json(options.to_json()) == options


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["driving"].update(emotoin="sad"),
            "driving: unknown entry emotoin; did you mean",
        ),
        (lambda d: d.update(extra={}), "options.json: unknown entry extra"),
        (lambda d: d["output"].update(resolution="256"), "--resolution 256: needs a multiple of 16"),
        (lambda d: d["output"].update(full_frame=1), "--full_frame 1: needs no value"),
        (lambda d: d["reference"].update(ref_img_id=3), "--ref_img_id 3: needs whole numbers"),
        (lambda d: d["driving"].update(emotion=None), "--emotion None: needs one of"),
        (lambda d: d.update(driving=[1]), "options.json, driving: holds list"),
    ],
)
def test_json_that_is_not_ours_is_refused(change, message):
    saved = json.loads(parse_demo(DRIVEN).to_json())
    change(saved)
    with pytest.raises(UserError) as caught:
        DemoOptions.from_json(json.dumps(saved))
    assert message in str(caught.value)


def test_json_that_is_no_json_is_refused():
    with pytest.raises(UserError, match=r"run/options.json: not JSON"):
        DemoOptions.from_json("{", "run/options.json")


def test_table_of_flags_is_current():
    written = (REPO / "docs" / "flags.md").read_text(encoding="utf-8")
    assert written == table(), "run: python -m options > docs/flags.md"
    for cls in SCRIPTS.values():
        assert all(f"| `--{name}` |" in written for name in names_of(cls))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_instant_and_complete(script):
    done = run(script, "--help")
    assert done.returncode == 0
    assert not done.stderr
    assert all(f"--{name}" in done.stdout for name in names_of(SCRIPTS[script]))
    loaded = run(script, "--help", python=("-X", "importtime")).stderr
    assert " argparse\n" in loaded
    assert not [
        name for name in ("torch", "numpy", "mediapipe", "cv2", "av") if f" {name}\n" in loaded
    ]  # instant


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_refuse_in_one_line_with_status_2(script):
    done = run(script, "--nthreads", "4")
    assert done.returncode == 2
    assert not done.stdout
    assert done.stderr == "error: unknown flag --nthreads; did you mean --nThreads?\n"


def test_dry_run_prints_the_options_and_stops():
    done = run("test_demo_example.py", *DRIVEN, "--dry_run")
    assert done.returncode == 0
    assert DemoOptions.from_json(done.stdout) == parse_demo([*DRIVEN, "--dry_run"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preset", "upstream"], "--preset upstream: is for loading the public weights"),
        (["--netG", "geometric"], "--netG geometric: has nothing to train"),
        (["--continue_train", "--which_epoch", "3"], "--which_epoch 3: training goes on from latest only"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        parse_train(["--dataroot", str(tmp_path), *flags]).check_ready()
