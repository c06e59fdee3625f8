"""The flags, one dataclass per group. To add a flag, add a field: the parser, the help, the JSON and
docs/flags.md follow. A script's options (options/scripts.py) are made of these groups.
"""

from __future__ import annotations

from dataclasses import dataclass

from options.flags import INT_LIST, Flags, flag
from util.errors import UserError

DATASET_NAMES = ("vox", "lrs", "grid", "crema")
EMOTIONS = ("neutral", "happy", "sad", "angry", "fear", "disgust", "surprise")  # as util.types.EMOTIONS
HEAD_MOTIONS = ("audio", "target", "still")


@dataclass(frozen=True)
class ExperimentFlags(Flags):
    """The run: its name, its devices, its checkpoint."""

    name: str = flag("demo", "run name: the folder under checkpoints/ and results/ (train.py: the --model)")
    gpu_ids: tuple[int, ...] = flag(
        (), "GPUs, as in 0,1; -1 is the CPU (default: a GPU if there is one)", kind=INT_LIST, low=-1
    )
    which_epoch: str = flag("latest", "checkpoint to load: latest, or an epoch's number", later=True)
    dry_run: bool = flag(False, "print the resolved options as JSON and stop")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name.strip(". ") or any(c in self.name for c in "/\\\0\n"):
            raise UserError(f"--name {self.name!r}: needs a plain folder name without slashes")
        if self.which_epoch != "latest" and not (self.which_epoch.isascii() and self.which_epoch.isdigit()):
            raise UserError(f"--which_epoch {self.which_epoch}: needs latest or an epoch's number")
        if -1 in self.gpu_ids and len(self.gpu_ids) > 1:
            raise UserError("--gpu_ids: -1 (the CPU) stands alone; give -1, or GPU numbers as in 0,1")
        if len(set(self.gpu_ids)) < len(self.gpu_ids):
            raise UserError(f"--gpu_ids {','.join(map(str, self.gpu_ids))}: a GPU is named twice")

    @property
    def device(self) -> str:
        """ "auto" (a GPU if there is one), "cpu", or "cuda:N" for the first GPU named."""
        if not self.gpu_ids:
            return "auto"
        return "cpu" if self.gpu_ids == (-1,) else f"cuda:{self.gpu_ids[0]}"


@dataclass(frozen=True)
class DataFlags(Flags):
    """Where clips come from and how they are read."""

    dataset_mode: str = flag("facefore", "data reader", choices=("facefore", "facefore_demo"))
    dataroot: str = flag("", "the data set's folder (train.py, test_demo.py)")
    dataset_name: str = flag("vox", "file layout under --dataroot", choices=DATASET_NAMES)
    batchSize: int = flag(1, "samples per step (expression and head_motion: 32)", low=1, high=65536)
    nThreads: int = flag(1, "reader processes; 0 reads in the main process", low=0, high=1024)
    serial_batches: bool = flag(False, "take the clips in order, not at random")


@dataclass(frozen=True)
class DemoDataFlags(DataFlags):
    """Where clips come from, and how many are made into videos."""

    dataset_mode: str = flag("facefore_demo", "data reader", choices=("facefore", "facefore_demo"))
    example: bool = flag(False, "use the embedded portrait and voice for whatever isn't given")
    how_many: int = flag(300, "at most this many videos (test_demo.py)", low=1)


@dataclass(frozen=True)
class ReferenceFlags(Flags):
    """The reference frames, which give the identity."""

    n_shot: int = flag(1, "K: reference frames (demos: as many as --ref_img_id names)", low=1, high=64)
    crop_ref: bool = flag(False, "blank eyes and mouth of the warped reference: they get made", later=True)
    find_largest_mouth: bool = flag(False, "prefer reference frames with an open mouth", later=True)


@dataclass(frozen=True)
class TrainReferenceFlags(ReferenceFlags):
    """The reference frames, which give the identity, in training."""

    ref_ratio: float = flag(
        0.25, "first part of a clip that holds its references", low=0.0, high=1.0, later=True
    )


@dataclass(frozen=True)
class DemoReferenceFlags(ReferenceFlags):
    """The reference clip or photo, which gives the identity."""

    ref_video_path: str = flag("", "whom to show: a clip or an image file")
    ref_img_id: tuple[int, ...] = flag(
        (0,), "frames taken as references; one alone is repeated --n_shot times", kind=INT_LIST, low=0
    )
    ref_ani_id: int | None = flag(
        None, "frame that gives the 3D texture (default: the most frontal reference)", kind="int", low=0
    )
    ref_dataroot: str = flag("", "folder in which a relative --ref_video_path is looked for too")
    ref_dataset: str | None = flag(
        None, "file layout of the reference's data set", kind="str", choices=DATASET_NAMES
    )
    finetune: bool = flag(False, "few-shot fine-tuning on the references before synthesis", later=True)
    finetune_shot: int = flag(32, "frames used by --finetune", low=1, high=1000, later=True)

    @property
    def frames(self) -> tuple[int, ...]:
        """The K frame numbers of the references."""
        return self.ref_img_id * self.n_shot if len(self.ref_img_id) == 1 else self.ref_img_id


@dataclass(frozen=True)
class GeneratorFlags(Flags):
    """The image generator and its ablations."""

    # Models read `embedding`, `composition` and `warped`, never the switches that these are made of.

    netG: str = flag(
        "geometric",
        "geometric: warped by the 3D face; fewshot: the method's network, which isn't trained yet",
        choices=("geometric", "fewshot"),
    )
    adaptive_spade: bool = flag(False, "SPADE weights made from the references", later=True)
    warp_ref: bool = flag(False, "compose with the warped reference", later=True)
    warp_ani: bool = flag(False, "compose with the warped 3D image", later=True)
    spade_combine: bool = flag(False, "nonlinear composition instead of linear", later=True)
    use_new: bool = flag(False, "hybrid embedding, not few-shot-vid2vid's", later=True)
    no_warp: bool = flag(False, "compose with the images as they are, not warped", later=True)
    no_atten: bool = flag(False, "mean embedding instead of attention", later=True)
    same_flownet: bool = flag(False, "one flow network for all sources", later=True)
    n_frames_G: int = flag(1, "frames per time slice; 2 or more is temporal", low=1, high=64, later=True)

    @property
    def embedding(self) -> str:
        """How K references become one: "attention" (hybrid), "mean" or "fewshot" (few-shot-vid2vid)."""
        if self.no_atten:
            return "mean"
        return "attention" if self.use_new else "fewshot"

    @property
    def composition(self) -> str:
        """How raw image and warped images become the frame: "nonlinear" or "linear"."""
        return "nonlinear" if self.spade_combine else "linear"

    @property
    def warped(self) -> bool:
        """Whether the images that are composed are warped first."""
        return not self.no_warp


@dataclass(frozen=True)
class LossFlags(Flags):
    """What the generator is trained for."""

    add_raw_loss: bool = flag(False, "losses on the image before composition too", later=True)


@dataclass(frozen=True)
class ScheduleFlags(Flags):
    """What is trained, how long, and what is kept of it."""

    model: str = flag("vid2vid", "network to train", choices=("vid2vid", "expression", "head_motion"))
    niter: int = flag(100, "epochs in all (expression: 12, head_motion: 60)", low=1)
    niter_single: int = flag(50, "epoch at which temporal training starts", low=0, later=True)
    niter_step: int = flag(10, "epochs until temporal slices double in length", low=1, later=True)
    save_epoch_freq: int = flag(5, "epochs between checkpoints that are kept", low=1, later=True)
    display_freq: int = flag(100, "steps between pages of samples", low=1, later=True)
    continue_train: bool = flag(False, "go on from the run's last checkpoint")
    seed: int = flag(0, "seed of initial weights and of the order of clips", low=0, high=2**32 - 1)


@dataclass(frozen=True)
class DrivingFlags(Flags):
    """What moves the face: a voice, a target clip, or both (lips from the voice, head from the clip)."""

    audio_path: str = flag("", "voice: any audio file, or a clip with sound")
    tgt_video_path: str = flag("", "target clip: its motion, and its voice unless --audio_path is given")
    head_motion: str = flag(
        "audio",
        "audio, target (if there is a target clip: the default), still, or a .csv or .npy of pose keyframes",
    )
    no_head_motion: bool = flag(False, "the same as --head_motion still")
    head_motion_scale: float = flag(1.0, "amplitude of the head motion", low=0.0, high=3.0)
    emotion: str = flag("neutral", "facial emotion", choices=EMOTIONS)
    emotion_intensity: float = flag(1.0, "strength of --emotion", low=0.0, high=1.0)
    blink: str = flag("auto", "blinks of a voice-driven face", choices=("auto", "off"))
    seed: int = flag(
        0, "seed of head motion and blinks; the same seed gives the same video", low=0, high=2**32 - 1
    )


@dataclass(frozen=True)
class OutputFlags(Flags):
    """The video."""

    results_dir: str = flag("results", "the video is RESULTS_DIR/NAME/test.mp4")
    resolution: int = flag(256, "side of the square video in pixels", low=128, high=1024, multiple=16)
    full_frame: bool = flag(False, "paste the face back into the uncropped frame")
