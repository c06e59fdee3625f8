"""The pipeline: audio and reference frames in, video frames out. Nothing else knows the order of the steps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.clip_list import is_prepared, prepared_videos
from data.layouts.walk import CLIP_SUFFIXES
from data.reference_samples import ReferenceSamples, clip_faces
from face.crop import paste
from face.emotion import emotion_envelope, emotion_offset, emotional_eyes, emotional_lips
from face.expression_basis import lip_gap, load_basis
from face.pose import Pose, rotation_from_angles
from face.reference import Reference, ReferenceFace, load_reference
from face.rig import FaceRig
from models.driving import Driving, read_driving
from models.fewshot import IMPORTED, SHIPPED, FewShotFrames, FrameSynthesiser, generator_path, load_generator
from models.finetune import TuningPlan, finetune
from models.generator import FewShotGenerator
from models.generator_config import check_flags
from models.geometric import DEPTH, FaceMotion, GeometricGenerator
from models.geometry_stage import GeometryStage
from models.perceptual import PerceptualFeatures
from models.upstream.synthesiser import UpstreamSynthesiser
from options.groups import DemoDataFlags
from options.scripts import IMAGE_SUFFIXES, DemoOptions, TestOptions
from util.checkpoints import checkpoint_path
from util.errors import UserError, remark
from util.files import atomic_path, results_folder
from util.video import VideoWriter, write_contact_sheet

CHUNK, CHUNK_LEARNT = 8, 4  # frames made at a time: more of the network's leave the processor's caches
MAX_THREADS = 8  # of the network on a CPU
SHEET_FRAMES, SHEET_COLUMNS = 12, 6


class TalkingHead:
    """Audio (or a target clip) and reference frames in, video frames out."""

    def __init__(self, device: str = "cpu", network: FrameSynthesiser | None = None) -> None:
        """device: "cpu" or "cuda:N". network: makes the frames; without one they are the geometric ones."""
        self.device, self.network = device, network
        self.basis = load_basis()

    @classmethod
    def load(cls, options: DemoOptions) -> TalkingHead:
        """The pipeline on the device that the options ask for."""
        device = choose_device(options.experiment.device)
        learnt = options.generator.netG == "fewshot"
        # On a CPU the 3D face's pieces are small: a second thread costs more than it brings (benchmarks).
        if device == "cpu":
            torch.set_num_threads(min(os.cpu_count() or 1, MAX_THREADS) if learnt else 1)
        network = find_generator(options, device) if learnt else None
        return cls(device, network)

    def reference(self, options: DemoOptions) -> Reference:
        """Read the reference that the options name."""
        flags = options.reference
        return load_reference(
            options.reference_path, flags.frames, flags.ref_ani_id, options.output.resolution, self.basis
        )

    def driving(self, options: DemoOptions, reference: Reference) -> Driving:
        """Read or predict the motion that the options name."""
        target = options.target_path
        same_clip = target is not None and target.resolve() == options.reference_path.resolve()
        return read_driving(options.driving, target, reference, same_clip, self.basis, self.device)

    def finetuned(self, options: DemoOptions, reference: Reference, plan: TuningPlan) -> TalkingHead:
        """A pipeline whose network has learnt the reference's clip or photo (--finetune); this one stays as it is."""
        if not isinstance(self.network, FewShotGenerator):
            remark("--finetune: only networks that train.py trains can be tuned; nothing is changed")
            return self
        n_faces = options.reference.finetune_shot
        faces = clip_faces(options.reference_path, n_faces, reference, self.basis)
        samples = ReferenceSamples(
            faces,
            len(reference.faces),
            GeometryStage(),
            _open_mouth(reference),
            self.network.config.crop_ref,
        )
        perceptual = PerceptualFeatures().to(self.device)
        return TalkingHead(self.device, finetune(self.network, samples, perceptual, plan))

    def animate(self, reference: Reference, driving: Driving) -> Iterator[np.ndarray]:
        """Frames (S, S, 3) uint8 of the reference's face moved by the driving, one after the other."""
        ani = reference.ani
        copied = driving.copied
        neutral = copied.neutral if driving.same_clip else reference.neutral
        rig = FaceRig(ani.canonical, ani.blendshapes, self.basis, neutral)
        # A clip re-made from its own frame is compared with it: nothing is guessed or beautified there.
        depth, crispness = (1.0, 0.0) if driving.same_clip else (DEPTH, None)
        generator = GeometricGenerator(ani, self.basis, _open_mouth(reference), self.device, depth, crispness)
        learnt = FewShotFrames(self.network, reference, self.device) if self.network else None
        emotion = emotion_offset(self.basis, driving.emotion)
        chunk = CHUNK_LEARNT if learnt else CHUNK
        for first in range(0, driving.n_frames, chunk):
            part = slice(first, min(first + chunk, driving.n_frames))
            strength = emotion_envelope(part.stop - first, driving.emotion_intensity, first)
            spoken = None
            if driving.speech is not None:
                speech = driving.speech
                lips = emotional_lips(speech.lip_gap[part], driving.emotion, strength)
                spoken = rig.speak(speech.coefficients[part], lips, emotion, strength)
            meshes = spoken
            if copied is not None:
                meshes = (
                    rig.imitate(copied.offsets[part].astype(np.float32)) + strength[:, None, None] * emotion
                )
                if spoken is not None:
                    meshes = rig.replace_mouth(meshes, spoken)
            meshes = rig.blink(meshes, emotional_eyes(driving.closure[part], driving.emotion, strength))
            motion = FaceMotion(meshes, _pose(ani.pose, driving, part), driving.gaze[part])
            if learnt:
                image = learnt(generator.project(motion), generator.target_vertices(motion))
            else:
                image = generator(motion).image
            yield from image.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _open_mouth(reference: Reference) -> ReferenceFace:
    """The face whose mouth interior is shown."""
    return max(reference.faces, key=lambda f: float(lip_gap(f.canonical)))


def _pose(own: Pose, driving: Driving, part: slice) -> Pose:
    """Poses of some frames in the crop of the reference, whose own pose is `own`."""
    curve, unit = driving.curve, float(own.scale[0])
    shift = np.pad(curve.shift[part], ((0, 0), (0, 1))) * unit
    rotation = rotation_from_angles(curve.angles[part])
    scale = (unit * np.exp(curve.log_scale[part])).astype(np.float32)
    return Pose(rotation, scale, (own.translation + shift).astype(np.float32))


def find_generator(options: DemoOptions, device: str) -> FrameSynthesiser:
    """The network of the run --name, or the shipped one where there is no such run. Raises UserError."""
    name, named = options.experiment.name, options.generator.names_architecture
    run = generator_path(name, options.experiment.which_epoch)
    if run is None and named:
        remark(f"--name {name}: no such run under checkpoints/; the shipped generator makes the frames")
    path = run or checkpoint_path(SHIPPED)
    load = UpstreamSynthesiser.load if path.name == IMPORTED else load_generator
    network = load(path, "--name", device)
    if run and named:
        check_flags(options.generator, network.config, str(run))
    return network


def choose_device(wanted: str) -> str:
    """ "cpu" or "cuda:N" for "auto", "cpu" or "cuda:N". Raises UserError for a GPU that isn't there."""
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda"):
        number, there = int(wanted.split(":")[1]), torch.cuda.device_count()
        if not there:
            remark(f"--gpu_ids {number}: this machine has no usable GPU; the CPU is used")
            return "cpu"
        if number >= there:
            raise UserError(
                f"--gpu_ids {number}: this machine has {there} GPU(s); choose 0 to {there - 1}, or -1"
            )
    return wanted


def make_video(options: DemoOptions, head: TalkingHead | None = None) -> Path:
    """Make the video that the options ask for, a contact sheet and options.json beside it; returns its path."""
    path = options.video_path
    results_folder(path.parent)
    head = head or TalkingHead.load(options)
    reference = head.reference(options)
    driving = head.driving(options, reference)
    if options.reference.finetune and head.network:
        head = head.finetuned(options, reference, TuningPlan(seed=options.driving.seed))
    frames = head.animate(reference, driving)
    if options.output.full_frame:
        box = reference.ani.box
        frames = (paste(reference.source, f, box) for f in frames)
        height, width = reference.source.shape[:2]
    else:
        height = width = options.output.resolution
    chosen = set(np.linspace(0, driving.n_frames - 1, SHEET_FRAMES).astype(int))
    sheet = []
    with VideoWriter(path, width, height, voice=driving.voice) as video:
        for k, frame in enumerate(tqdm(frames, "frames", driving.n_frames, unit="frame", disable=None)):
            video.write(frame)
            if k in chosen:
                sheet.append(frame.copy())
    write_contact_sheet(path.with_suffix(".png"), sheet, SHEET_COLUMNS)
    with atomic_path(path.with_name("options.json")) as part:
        part.write_text(options.to_json() + "\n", encoding="utf-8")
    return path


def _batch(data: DemoDataFlags) -> Iterator[tuple[Path, Path | None]]:
    """Clips with their sound, where that is a file of its own, and photos. Prepared clips: those left out first."""
    root = Path(data.dataroot)
    for name in (data.dataset_name, "folder"):
        if data.clip_list or is_prepared(root, name):
            yield from prepared_videos(root, name, data.clip_list)
            return
    suffixes = (*CLIP_SUFFIXES, *IMAGE_SUFFIXES)
    files = (p for p in root.rglob("*") if p.suffix.lower() in suffixes and not p.name.startswith("."))
    yield from ((p, None) for p in sorted(files))


def make_videos(options: TestOptions) -> Iterator[Path]:
    """A video of each clip and photo under --dataroot; a damaged one is told of and skipped."""
    root = options.data.dataroot
    files = list(islice(_batch(options.data), options.data.how_many))
    if not files:
        raise UserError(f"--dataroot {root}: no clip or photo in it; give a folder that holds some")
    head, made, failed = TalkingHead.load(options), 0, 0
    for path, sound in files:
        try:
            yield make_video(options.for_clip(path, sound), head)
            made += 1
        except UserError as error:
            failed += 1
            remark(f"skipped: {error}")
    if not made:
        raise UserError(
            f"--dataroot {root}: none of its {failed} files could be used; the notes above say why"
        )
    if failed:
        remark(f"{failed} of {made + failed} files were skipped")
