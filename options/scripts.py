"""The options of each script: its groups of flags, defaults that depend on other flags, cross-checks."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from os.path import exists, isdir, isfile  # unlike pathlib, they answer for names that are too long
from pathlib import Path
from typing import Any, ClassVar

from options.base import ScriptOptions
from options.flags import nearest
from options.groups import (
    HEAD_MOTIONS,
    DataFlags,
    DemoDataFlags,
    DemoLossFlags,
    DemoReferenceFlags,
    DiscriminatorFlags,
    DrivingFlags,
    GeneratorFlags,
    LossFlags,
    OptimiserFlags,
    OutputFlags,
    ScheduleFlags,
    TrainReferenceFlags,
)
from util.errors import UserError, remark

DEMO_DIR = Path(__file__).resolve().parent.parent / "demo"
EXAMPLE_PORTRAIT = DEMO_DIR / "portrait.png"
EXAMPLE_VOICE = DEMO_DIR / "voice.flac"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class DemoOptions(ScriptOptions):
    """One talking-head video from a portrait or clip and a voice or clip: see README.md."""

    SCRIPT: ClassVar[str] = "test_demo_example.py"
    reference: DemoReferenceFlags = field(default_factory=DemoReferenceFlags)
    driving: DrivingFlags = field(default_factory=DrivingFlags)
    output: OutputFlags = field(default_factory=OutputFlags)
    data: DemoDataFlags = field(default_factory=DemoDataFlags)
    generator: GeneratorFlags = field(default_factory=GeneratorFlags)
    loss: DemoLossFlags = field(default_factory=DemoLossFlags)

    @classmethod
    def resolve(cls, given: dict[str, Any]) -> dict[str, Any]:
        values = {"n_shot": len(given.get("ref_img_id", (0,))), **given}
        if given.get("no_head_motion"):
            if (word := given.get("head_motion", "still")) != "still":
                raise UserError(f"--no_head_motion: contradicts --head_motion {word}; give one of them")
            values["head_motion"] = "still"
        values.setdefault("head_motion", "target" if cls.has_target(given) else "audio")
        if given.get("example"):
            values |= cls.example_inputs(given)
        return values

    @classmethod
    def has_target(cls, given: dict[str, Any]) -> bool:
        """Whether there is a clip that can give the head motion."""
        return "tgt_video_path" in given

    @classmethod
    def example_inputs(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The embedded files that stand in, under --example, for what is not given."""
        stand_ins = {}
        if "ref_video_path" not in given:
            stand_ins["ref_video_path"] = str(EXAMPLE_PORTRAIT)
        if "audio_path" not in given and "tgt_video_path" not in given:
            stand_ins["audio_path"] = str(EXAMPLE_VOICE)
        return stand_ins

    def validate(self) -> None:
        _check_references(self.reference)
        _check_head_motion(self.driving.head_motion)
        self.check_inputs()

    def check_inputs(self) -> None:
        """Raise UserError unless there is somebody to show and something that drives them."""
        driving = self.driving
        if not self.reference.ref_video_path:
            raise UserError("--ref_video_path: not given; give a clip or an image file, or --example")
        if not driving.audio_path and not driving.tgt_video_path:
            raise UserError("--audio_path: not given, nor --tgt_video_path; give one of them, or --example")
        if driving.head_motion == "target" and not driving.tgt_video_path:
            raise UserError("--head_motion target: needs --tgt_video_path, the clip that it is taken from")

    def check_ready(self) -> None:
        driving = self.driving
        paths = {"ref_video_path": self.reference_path, "audio_path": driving.audio_path}
        paths |= {"tgt_video_path": self.target_path, "tgt_audio_path": driving.tgt_audio_path}
        if driving.head_motion not in HEAD_MOTIONS:
            paths["head_motion"] = driving.head_motion
        for name, path in paths.items():
            if path and (isdir(path) or not exists(path)):
                found = "is a folder" if isdir(path) else "no such file"
                raise UserError(f"--{name} {path}: {found}; give the path of a file")

    def remarks(self, given: dict[str, Any]) -> None:
        if "emotion_intensity" in given and self.driving.emotion == "neutral":
            remark("--emotion_intensity changes nothing without --emotion")
        idle = [
            f"--{f.name}"
            for group in self.groups().values()
            for f in fields(group)
            if f.metadata["learnt"] and given.get(f.name, f.default) != f.default
        ]
        if idle and self.generator.netG == "geometric":
            remark(f"--netG geometric makes no use of {', '.join(idle)}")

    @property
    def reference_path(self) -> Path | None:
        """The reference clip or image, looked for under --ref_dataroot too."""
        return _look_in(self.reference.ref_dataroot, self.reference.ref_video_path)

    @property
    def target_path(self) -> Path | None:
        """The target clip, looked for under --dataroot too; None if there is none."""
        return _look_in(self.data.dataroot, self.driving.tgt_video_path)

    @property
    def video_path(self) -> Path:
        """Where the video goes."""
        return Path(self.output.results_dir) / self.experiment.name / "test.mp4"


@dataclass(frozen=True)
class TestOptions(DemoOptions):
    """Videos of every clip and photo of a folder; a clip is re-made from its own reference frames."""

    __test__: ClassVar[bool] = False  # pytest: not a test
    SCRIPT: ClassVar[str] = "test_demo.py"

    @classmethod
    def has_target(cls, given: dict[str, Any]) -> bool:
        return True

    @classmethod
    def example_inputs(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {}

    def check_inputs(self) -> None:
        if not self.data.dataroot:
            raise UserError("--dataroot: not given; give the folder of clips or photos to make videos of")

    def check_ready(self) -> None:
        super().check_ready()
        if not isdir(self.data.dataroot):
            raise UserError(
                f"--dataroot {self.data.dataroot}: no such folder; give a folder of clips or photos"
            )

    def for_clip(self, path: Path, sound: Path | None = None) -> DemoOptions:
        """The options of one video of the batch: RESULTS_DIR/NAME/<its path under --dataroot>/test.mp4.

        A clip drives itself, `sound` being its voice if that is a file of its own, unless --tgt_video_path drives
        all; a photo is driven by --audio_path, or with --example by the embedded voice. The identity is the clip's
        own unless --ref_video_path gives one.
        Raises UserError for a photo that nothing drives.
        """
        driving, photo = self.driving, path.suffix.lower() in IMAGE_SUFFIXES
        target = driving.tgt_video_path or ("" if photo else str(path))
        voice = driving.audio_path or (str(EXAMPLE_VOICE) if self.data.example and not target else "")
        motion = "audio" if driving.head_motion == "target" and not target else driving.head_motion
        groups = {f.name: getattr(self, f.name) for f in fields(self)}
        heard = str(sound) if sound and target == str(path) else driving.tgt_audio_path
        groups["driving"] = replace(
            driving, tgt_video_path=target, audio_path=voice, tgt_audio_path=heard, head_motion=motion
        )
        groups["reference"] = replace(
            self.reference, ref_video_path=self.reference.ref_video_path or str(path)
        )
        groups["output"] = replace(
            self.output, results_dir=str(Path(self.output.results_dir) / self.experiment.name)
        )
        root = Path(self.data.dataroot)
        inside = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
        name = "_".join(inside.with_suffix("").parts)  # equal file names in two folders stay apart
        groups["experiment"] = replace(self.experiment, name=name)
        options = DemoOptions(**groups)
        options.validate()
        return options


@dataclass(frozen=True)
class TrainOptions(ScriptOptions):
    """Train one of the networks: see README.md."""

    SCRIPT: ClassVar[str] = "train.py"
    MODEL_DEFAULTS: ClassVar[dict[str, dict[str, int]]] = {
        "vid2vid": {},
        "expression": {"niter": 12, "batchSize": 32},
        "head_motion": {"niter": 60, "batchSize": 32},
    }
    schedule: ScheduleFlags = field(default_factory=ScheduleFlags)
    data: DataFlags = field(default_factory=DataFlags)
    reference: TrainReferenceFlags = field(default_factory=TrainReferenceFlags)
    generator: GeneratorFlags = field(default_factory=GeneratorFlags)
    loss: LossFlags = field(default_factory=LossFlags)
    discriminator: DiscriminatorFlags = field(default_factory=DiscriminatorFlags)
    optimiser: OptimiserFlags = field(default_factory=OptimiserFlags)

    @classmethod
    def resolve(cls, given: dict[str, Any]) -> dict[str, Any]:
        model = given.get("model", "vid2vid")
        return {"name": model, "netG": "fewshot", **cls.MODEL_DEFAULTS[model], **given}

    def check_ready(self) -> None:
        if not self.data.dataroot:
            raise UserError("--dataroot: not given; give the folder of clips to train on")
        streamed = self.data.dataroot.startswith(("http://", "https://")) or self.data.dataroot.endswith(
            ".tar"
        )
        if not isdir(self.data.dataroot) and not (streamed and self.schedule.model == "vid2vid"):
            raise UserError(f"--dataroot {self.data.dataroot}: no such folder; give a folder of clips")
        if self.schedule.model == "vid2vid":
            self._check_images()

    def _check_images(self) -> None:
        if self.generator.preset == "upstream":
            raise UserError(
                "--preset upstream: is for loading the public weights, not for training; choose full or lite"
            )
        if self.generator.netG != "fewshot":
            raise UserError(
                f"--netG {self.generator.netG}: has nothing to train; give fewshot or leave it out"
            )
        if self.schedule.continue_train and self.experiment.which_epoch != "latest":
            raise UserError(
                f"--which_epoch {self.experiment.which_epoch}: training goes on from latest only; leave it out"
            )


def _check_references(reference: DemoReferenceFlags) -> None:
    named = len(reference.ref_img_id)
    if named not in (1, reference.n_shot):
        raise UserError(
            f"--n_shot {reference.n_shot}: --ref_img_id names {named} frames; "
            f"name {reference.n_shot} or one, or give --n_shot {named}"
        )


def _check_head_motion(word: str) -> None:
    if word not in HEAD_MOTIONS and Path(word).suffix.lower() not in (".csv", ".npy"):
        near = nearest(word, HEAD_MOTIONS)
        raise UserError(f"--head_motion {word}: needs audio, target, still or a .csv or .npy file{near}")


def _look_in(folder: str, path: str) -> Path | None:
    if not path:
        return None
    inside = Path(folder) / path
    return inside if folder and not isfile(path) and isfile(inside) else Path(path)
