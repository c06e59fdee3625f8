"""What a public network was built from: as options, or read from the names and shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from util.errors import UserError

Shapes = Mapping[str, Sequence[int]]

MERGE_LEVEL = 2  # references become one, and attention is computed, at a quarter of the size
COMPOSED_LEVELS = 2  # decoder levels, from the finest, that the warped images are given to


@dataclass(frozen=True)
class UpstreamConfig:
    """The public generator's switches and sizes; the defaults are the paper's.

    n_shot: K, the references it was trained with. Only the joint encoder (`use_new`) depends on it; None: not known.
    attention: references are weighed by their likeness to the target's landmarks, else averaged.
    warped: the warped images are used, else the images as they are.
    add_raw_loss: the nonlinear combiner also gives the image before composition.
    align_corners: the warp of torch before 1.3.
    Raises UserError for a combination or a size that the public code cannot build.
    """

    n_shot: int | None = 8
    use_new: bool = True
    attention: bool = True
    spade_combine: bool = True
    warp_ref: bool = True
    warp_ani: bool = True
    warped: bool = True
    add_raw_loss: bool = True
    adaptive_spade: bool = True
    align_corners: bool = False
    ngf: int = 32
    n_downsample: int = 5
    n_adaptive: int = 4
    nff: int = 32
    n_downsample_flow: int = 3
    n_blocks_flow: int = 6

    def __post_init__(self) -> None:
        if self.use_new and self.n_shot is None:
            raise UserError("n_shot: the joint encoder (use_new) needs the number of references")
        if self.use_new and self.n_shot != 1 and not self.attention:
            raise UserError("no_atten: the joint encoder (use_new) needs attention; leave out one of the two")
        ranges = {
            "ngf": (1, 512),
            "n_shot": (1, 64),
            "n_downsample": (MERGE_LEVEL + 1, 8),
            "n_adaptive": (0, self.n_downsample - 1),
            "nff": (1, 512),
            "n_downsample_flow": (0, 8),
            "n_blocks_flow": (0, 64),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UserError(f"{name} {value}: needs {low} to {high}")

    @property
    def channels(self) -> tuple[int, ...]:
        """Widths by level; level i is the image halved i times, and the last two are the bottleneck's."""
        return tuple(self.ngf * 2 ** min(i, self.n_downsample) for i in range(self.n_downsample + 2))

    @property
    def adaptive_levels(self) -> int:
        """Decoder levels, from the finest, whose landmark modulation is made from the references."""
        return self.n_adaptive if self.adaptive_spade else 0

    @property
    def fuses(self) -> bool:
        """Whether the joint encoder has the layers that merge several references."""
        return self.use_new and self.n_shot != 1

    @property
    def flags(self) -> str:
        """The public flags of the network, as on its command line."""
        names = ("adaptive_spade", "warp_ref", "warp_ani", "spade_combine", "add_raw_loss", "use_new")
        given = [name for name in names if getattr(self, name)]
        given += ["no_atten"] * (not self.attention) + ["no_warp"] * (not self.warped)
        given += [f"n_shot {self.n_shot}"] * (self.n_shot is not None)
        return " ".join(f"--{name}" for name in given)

    @classmethod
    def detect(cls, shapes: Shapes, **unrecorded: bool) -> UpstreamConfig:
        """The configuration of a state dict, from its keys and shapes.

        unrecorded: `warped`, `add_raw_loss`, `align_corners`, of which the weights hold no trace.
        Raises UserError where the keys are not a generator's.
        """

        def has(start: str) -> bool:
            return any(key.startswith(start) for key in shapes)

        ngf = _size(shapes, "netG.conv_img.weight", 1)
        flow = next(
            (f"warp.flow_network_{s}" for s in ("ref", "ani") if has(f"warp.flow_network_{s}.")), None
        )
        use_new, adaptive, n_shot = has("netG.encoder."), has("netG.weight_gen."), None
        if use_new:
            stacked = "netG.encoder.atten1.conv.weight_orig"
            n_shot = _size(shapes, stacked, 1) // (ngf * 2**MERGE_LEVEL) if stacked in shapes else 1
        sizes = {"ngf": ngf, "n_downsample": _n_numbered(shapes, "netG.up_{}.") - 1}
        if adaptive:
            sizes["n_adaptive"] = _n_numbered(shapes, "netG.weight_gen.fc_spade_0_{}.")
        if flow:
            sizes["nff"] = _size(shapes, f"{flow}.conv_flow.0.weight", 1)
            sizes["n_blocks_flow"] = _n_numbered(shapes, f"{flow}.res_flow.{{}}.")
            down = re.compile(re.escape(f"{flow}.down_flow.") + r"\d+\.0\.weight_orig")
            sizes["n_downsample_flow"] = sum(map(bool, map(down.fullmatch, shapes))) - 1
        return cls(
            n_shot=n_shot,
            use_new=use_new,
            attention=has("netG.atten_gen."),
            spade_combine=has("img_ref_embedding."),
            warp_ref=has("warp.flow_network_ref."),
            warp_ani=has("warp.flow_network_ani."),
            adaptive_spade=adaptive,
            **unrecorded,
            **sizes,
        )


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of the public PatchGAN; the defaults are the paper's. Raises UserError outside their ranges."""

    in_channels: int = 8
    ndf: int = 32
    n_layers: int = 4

    def __post_init__(self) -> None:
        for name, high in {"in_channels": 64, "ndf": 512, "n_layers": 8}.items():
            if not 1 <= getattr(self, name) <= high:
                raise UserError(f"{name} {getattr(self, name)}: needs 1 to {high}")

    @classmethod
    def detect(cls, shapes: Shapes) -> DiscriminatorConfig:
        """The configuration of a state dict. Raises UserError where the keys are not a discriminator's."""
        first = "discriminator_0.model0.0.weight"
        layers = _n_numbered(shapes, "discriminator_0.model{}.") - 2
        return cls(in_channels=_size(shapes, first, 1), ndf=_size(shapes, first, 0), n_layers=layers)


def _size(shapes: Shapes, key: str, axis: int) -> int:
    if key not in shapes:
        raise UserError(f"lacks {key}, which all such networks have")
    if len(shapes[key]) <= axis:
        raise UserError(f"{key} has shape {tuple(shapes[key])}, which is no convolution's")
    return shapes[key][axis]


def _n_numbered(shapes: Shapes, pattern: str) -> int:
    """How many of pattern.format(0), pattern.format(1), ... begin some key, up to the first that does not."""
    return next(n for n in count() if not any(key.startswith(pattern.format(n)) for key in shapes))
