"""What generator and discriminators are trained for: dictionaries of named, already weighted terms.

Parity notes, section 6. Every term is a plain mean over the batch, so that processes with equal shares of a batch
average to the loss of the whole. A term of weight 0 is left out and costs nothing.

Names: "gan", "feat", "vgg" for the frame, with "_raw", "_ani" for the images before composition and "_face", "_mouth",
"_temp" for the other critics; "flow_S", "warp_S", "weight_S" for source S (ref, ani, prev); "l1", "l1_mask".
Discriminators: "d_C_real", "d_C_fake" for critic C (frame, face, mouth, temporal).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.discriminator import MOUTH_SIZE, Features, crop_box
from models.perceptual import PerceptualFeatures, perceptual_distance
from options.groups import LossFlags
from util.batch import FaceBatch, Synthesis

Critics = nn.ModuleDict  # of models.discriminator.build_discriminators
Judge = Callable[
    [Tensor], Features
]  # images, one or more per sample stacked along the batch axis -> feature maps
FlowTruth = Mapping[str, tuple[Tensor, Tensor]]  # source -> flow (B, 2, H, W) pixels, confidence (B, 1, H, W)


def generator_losses(
    syn: Synthesis,
    batch: FaceBatch,
    t: int,
    critics: Critics | None,
    perceptual: PerceptualFeatures | None,
    flow_truth: FlowTruth | None,
    flags: LossFlags,
) -> dict[str, Tensor]:
    """The generator's terms for target frame t, weighted; sum them.

    critics: None trains without them (before --gan_start). Freeze them meanwhile (`requires_grad_(False)`), or
    their parameters gather gradients. Of a "mouth" critic follows the perceptual loss of the mouth.
    perceptual: None leaves its terms out. flow_truth: None leaves the flow terms out.
    """
    terms = {}
    if critics is not None:
        terms |= _critics_terms(syn, batch, t, critics, flags)
    if perceptual is not None and not flags.no_vgg_loss:
        with_mouth = critics is not None and "mouth" in critics
        terms |= _perceptual_terms(syn, batch, t, perceptual, flags, with_mouth)
    return terms | _warp_terms(syn, batch, t, flow_truth or {}, flags) | _pixel_terms(syn, batch, t, flags)


def temporal_losses(
    syns: Sequence[Synthesis], batch: FaceBatch, critics: Critics | None, flags: LossFlags
) -> dict[str, Tensor]:
    """The generator's "gan_temp" and "feat_temp" for a slice: `syns[t]` is frame t of the batch.

    Empty without a "temporal" critic or where the slice is shorter than its window.
    """
    if not _has_temporal(critics, len(syns)):
        return {}
    judge = _temporal_judge(critics, batch, len(syns))
    fake = torch.stack([syn.image for syn in syns], 1)
    real = batch.tgt_image[:, : len(syns)]
    return _adversarial_terms(judge, {"_temp": fake}, real, flags.lambda_temp, flags)


def discriminator_losses(
    fakes: Sequence[Synthesis], batch: FaceBatch, critics: Critics, flags: LossFlags
) -> dict[str, Tensor]:
    """The critics' hinge losses, mean over the frames of a slice: `fakes[t]` is frame t of the batch.

    fakes are detached here. The frame critic sees the images that `generator_losses` shows it, each against the
    same truth. "d_temporal_*" is there where the slice is as long as the critic's window.
    """
    terms: dict[str, Tensor] = {}
    for t, syn in enumerate(fakes):
        for name in critics:
            if name == "temporal":
                continue
            images = [
                i.detach() for i in (_judged(syn, flags) if name == "frame" else {"": syn.image}).values()
            ]
            seen = _judge(critics, name, batch, t)(torch.cat([batch.tgt_image[:, t], *images]))
            for key, value in _hinge(seen, 1 + len(images)).items():
                key = f"d_{name}_{key}"
                terms[key] = terms.get(key, 0.0) + value / len(fakes)
    if _has_temporal(critics, len(fakes)):
        fake = torch.stack([syn.image.detach() for syn in fakes], 1)
        judge = _temporal_judge(critics, batch, len(fakes))
        for key, value in _hinge(judge(torch.cat([batch.tgt_image[:, : len(fakes)], fake])), 2).items():
            terms[f"d_temporal_{key}"] = value
    return terms


def mouth_crop(image: Tensor, batch: FaceBatch, t: int) -> Tensor:
    """(n * B, 3, H, W), n images per sample -> (n * B, 3, 64, 64) their mouths in frame t."""
    box = batch.mouth_box[:, t]
    return crop_box(image, box.repeat(len(image) // len(box), 1), MOUTH_SIZE)


def _judged(syn: Synthesis, flags: LossFlags) -> dict[str, Tensor]:
    """The images that are held against the same target, by the suffix of their terms."""
    images = {"": syn.image}
    if flags.add_raw_loss and syn.raw is not None:
        images["_raw"] = syn.raw
    if syn.ani_composed is not None:
        images["_ani"] = syn.ani_composed
    return images


def _judge(critics: Critics, name: str, batch: FaceBatch, t: int) -> Judge:
    """The critic "frame", "face" or "mouth" with its condition."""
    condition = batch.tgt_sketch[:, t]
    if name == "frame":
        condition = torch.cat([batch.warp_sketch[:, t], batch.warp_image[:, t], condition], 1)
    box = {"face": batch.face_box, "mouth": batch.mouth_box}.get(name)

    def judge(images: Tensor) -> Features:
        n = len(images) // len(condition)
        x = torch.cat([condition.repeat(n, 1, 1, 1), images], 1)
        return critics[name](x) if box is None else critics[name](x, box[:, t].repeat(n, 1))

    return judge


def _temporal_judge(critics: Critics, batch: FaceBatch, n_frames: int) -> Judge:
    """The temporal critic of (n * B, T, 3, H, W)."""
    sketches = batch.tgt_sketch[:, :n_frames]
    return lambda images: critics["temporal"](
        images, sketches.repeat(len(images) // len(sketches), 1, 1, 1, 1)
    )


def _has_temporal(critics: Critics | None, n_frames: int) -> bool:
    return critics is not None and "temporal" in critics and n_frames >= critics["temporal"].n_frames


def _critics_terms(
    syn: Synthesis, batch: FaceBatch, t: int, critics: Critics, flags: LossFlags
) -> dict[str, Tensor]:
    """Hinge and feature matching of the frame, the face and the mouth."""
    real = batch.tgt_image[:, t]
    terms = _adversarial_terms(_judge(critics, "frame", batch, t), _judged(syn, flags), real, 1.0, flags)
    for name, weight in (("face", flags.lambda_face), ("mouth", flags.lambda_mouth)):
        if name in critics:
            judge = _judge(critics, name, batch, t)
            terms |= _adversarial_terms(judge, {f"_{name}": syn.image}, real, weight, flags)
    return terms


def _adversarial_terms(
    judge: Judge, fakes: Mapping[str, Tensor], real: Tensor, weight: float, flags: LossFlags
) -> dict[str, Tensor]:
    """-mean D(fake), and L1 between the features of fake and real in all layers but the last; mean over scales."""
    gan = weight * flags.lambda_gan
    feat = 0.0 if flags.no_ganFeat_loss else weight * flags.lambda_feat
    terms: dict[str, Tensor] = {}
    if not gan and not feat:
        return terms
    truth: Features = []
    if feat:
        with torch.no_grad():
            truth = judge(real)
    seen = judge(torch.cat(list(fakes.values())))
    for i, suffix in enumerate(fakes):
        mine = [[layer.chunk(len(fakes))[i] for layer in scale] for scale in seen]
        if gan:
            terms[f"gan{suffix}"] = -gan * sum(scale[-1].float().mean() for scale in mine) / len(mine)
        if feat:
            pairs = [
                pair for m, r in zip(mine, truth, strict=True) for pair in zip(m[:-1], r[:-1], strict=True)
            ]
            terms[f"feat{suffix}"] = feat * sum(F.l1_loss(a, b) for a, b in pairs) / len(mine)
    return terms


def _hinge(seen: Features, n: int) -> dict[str, Tensor]:
    """relu(1 - D(real)) and relu(1 + D(fake)) of n images stacked, the first one real; mean over scales.

    The real image counts once for each fake, as pairs do, so that neither side outweighs the other.
    """
    real, fake = seen[0][-1].new_zeros((), dtype=torch.float32), 0.0
    for scale in seen:
        truth, *others = scale[-1].float().chunk(n)
        real = real + (n - 1) * F.relu(1 - truth).mean() / len(seen)
        fake = fake + sum(F.relu(1 + other).mean() for other in others) / len(seen)
    return {"real": real, "fake": fake}


def _perceptual_terms(
    syn: Synthesis, batch: FaceBatch, t: int, net: PerceptualFeatures, flags: LossFlags, with_mouth: bool
) -> dict[str, Tensor]:
    """Distance in feature space to the target, of the frame's images and of the mouth."""
    real, images = batch.tgt_image[:, t], _judged(syn, flags)
    terms: dict[str, Tensor] = {}
    if flags.lambda_vgg:
        for suffix, distance in zip(images, _distances(net, list(images.values()), real), strict=True):
            terms[f"vgg{suffix}"] = flags.lambda_vgg * distance
    if with_mouth and flags.lambda_mouth_vgg:
        (distance,) = _distances(net, [mouth_crop(syn.image, batch, t)], mouth_crop(real, batch, t))
        terms["vgg_mouth"] = flags.lambda_mouth_vgg * distance
    return terms


def _distances(net: PerceptualFeatures, images: Sequence[Tensor], real: Tensor) -> list[Tensor]:
    with torch.no_grad():
        truth = net(real)
    seen = net(torch.cat(list(images)))
    return [
        perceptual_distance([m.chunk(len(images))[i] for m in seen], truth, net.weights)
        for i in range(len(images))
    ]


def _warp_terms(
    syn: Synthesis, batch: FaceBatch, t: int, flow_truth: FlowTruth, flags: LossFlags
) -> dict[str, Tensor]:
    """Flows to their teacher, warped images to the target, weights to where warping is right."""
    target = batch.tgt_image[:, t]
    terms: dict[str, Tensor] = {}
    for source, flow in syn.flow.items():
        if flags.lambda_flow and source in flow_truth:
            truth, confidence = flow_truth[source]
            terms[f"flow_{source}"] = flags.lambda_flow * (confidence * (flow - truth)).abs().mean()
    for source, warped in syn.warped.items():
        if flags.lambda_warp:
            seen = target
            if source == "ani" and batch.ani_mask is not None:  # the 3D image is -1 outside the face
                mask = batch.ani_mask[:, t]
                seen = target * mask - (1 - mask)
            terms[f"warp_{source}"] = flags.lambda_warp * F.l1_loss(warped, seen)
        if flags.use_weight_loss and flags.lambda_weight and source in syn.weight:
            terms[f"weight_{source}"] = flags.lambda_weight * _weight_loss(syn.weight[source], warped, target)
    return terms


def _weight_loss(weight: Tensor, warped: Tensor, target: Tensor) -> Tensor:
    """Weight 0 (taken from the source) where warping is right, else 1. Held against the whole target: outside the
    face the 3D image is black, and must not be taken there."""
    # detached, or a flow could please by warping worse
    right = (1 - (warped.detach() - target).abs().sum(1, keepdim=True)).clamp(0, 1)
    return (right * weight).abs().mean() + ((1 - right) * (weight - 1)).abs().mean()


def _pixel_terms(syn: Synthesis, batch: FaceBatch, t: int, flags: LossFlags) -> dict[str, Tensor]:
    terms: dict[str, Tensor] = {}
    if not flags.face_l1 and not flags.mask_l1:
        return terms
    error = (syn.image.float() - batch.tgt_image[:, t]).abs().mean(1, keepdim=True)
    if flags.face_l1:
        terms["l1"] = flags.face_l1 * error.mean()
    if flags.mask_l1:
        mask = batch.template[:, t]
        inside = (error * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(
            min=1
        )  # by sample, for equal shares
        terms["l1_mask"] = flags.mask_l1 * inside.mean()
    return terms
