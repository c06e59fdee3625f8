"""Sizes and switches of the generator: presets, and the way from flags and to JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from options.groups import GeneratorFlags
from util.errors import UserError

FORMAT = "fewshot"  # what the note of a checkpoint of such a network says it is


@dataclass(frozen=True)
class GeneratorConfig:
    """What `FewShotGenerator` is built of. The defaults are the paper's sizes."""

    ngf: int = 32  # channels at the finest level; they double at every halving
    max_channels: int = 1024
    n_downsample: int = 5  # halvings from the finest level to the bottleneck
    n_adaptive: int = 4  # finest levels whose SPADE weights come from the references
    n_compose: int = 2  # finest levels that see the warped images (nonlinear composition)
    stem: int = 1  # pixels of a side that the finest level takes together
    nff: int = 32  # channels of the flow networks and of the attention
    n_downsample_flow: int = 3
    n_blocks_flow: int = 6
    flow_stem: int = 1  # as `stem`, of the flow networks and the attention
    embedding: str = "attention"  # "attention" (hybrid), "mean", "fewshot" (few-shot-vid2vid's)
    composition: str = "nonlinear"  # or "linear"
    adaptive_spade: bool = True
    warp_ref: bool = True
    warp_ani: bool = True
    warped: bool = True  # compose with warped images, not with the images as they are
    add_raw: bool = False  # make the image before composition too, for its losses
    mesh_flow: bool = True  # flows and composition start from the 3D mesh's
    same_flownet: bool = False  # one flow network for all sources
    temporal: bool = False  # compose with the warped previous frame
    crop_ref: bool = False  # images to be warped come with eyes and mouth blanked

    def channels(self, level: int) -> int:
        """Channels at a level; level 0 is the finest, `n_downsample` the bottleneck."""
        return min(self.ngf * 2**level, self.max_channels)

    @property
    def level_channels(self) -> list[int]:
        """Channels of every level, finest first."""
        return [self.channels(level) for level in range(self.n_downsample + 1)]

    @property
    def n_made_levels(self) -> int:
        """Finest levels whose SPADE weights are made from the references: 0 without adaptive SPADE."""
        return self.n_adaptive if self.adaptive_spade else 0

    @property
    def sources(self) -> tuple[str, ...]:
        """The images that are warped into the frame."""
        wanted = {"ref": self.warp_ref, "ani": self.warp_ani, "prev": self.temporal}
        return tuple(name for name, on in wanted.items() if on)

    @property
    def multiple(self) -> int:
        """Pictures' sides are multiples of this."""
        flow = self.flow_stem * 2**self.n_downsample_flow
        return max(self.stem * 2**self.n_downsample, flow, 4 * self.flow_stem)

    def to_json_dict(self) -> dict[str, Any]:
        """For a checkpoint's note."""
        return asdict(self)

    @classmethod
    def from_json_dict(cls, saved: dict[str, Any], source: str = "checkpoint") -> GeneratorConfig:
        """Inverse of `to_json_dict`; what is missing is as by default. Raises UserError for other entries."""
        known = {f.name: type(f.default) for f in fields(cls)}
        if not isinstance(saved, dict) or any(known.get(k) is not type(v) for k, v in saved.items()):
            raise UserError(f"{source}: its sizes are not those of this version's networks; train it again")
        return cls(**saved)


LITE = GeneratorConfig(
    ngf=16,
    max_channels=128,
    n_downsample=4,
    n_adaptive=3,
    stem=2,
    nff=32,
    n_downsample_flow=1,
    n_blocks_flow=1,
    flow_stem=4,
)
PRESETS = {"full": GeneratorConfig(), "lite": LITE}

# flag: field of GeneratorConfig
_SIZES = {
    "ngf": "ngf",
    "nff": "nff",
    "n_downsample_G": "n_downsample",
    "n_downsample_F": "n_downsample_flow",
    "n_blocks_F": "n_blocks_flow",
}
_SWITCHES = {
    "use_new/--no_atten": "embedding",
    "spade_combine": "composition",
    "adaptive_spade": "adaptive_spade",
    "warp_ref": "warp_ref",
    "warp_ani": "warp_ani",
    "no_warp": "warped",
    "mesh_flow": "mesh_flow",
    "same_flownet": "same_flownet",
}
_TRAINING = {"add_raw_loss": "add_raw", "n_frames_G": "temporal", "crop_ref": "crop_ref"}


def config_from_flags(
    flags: GeneratorFlags, add_raw: bool = False, crop_ref: bool = False
) -> GeneratorConfig:
    """The network that the flags ask for. Raises UserError for a preset that is not ours (upstream)."""
    if flags.preset not in PRESETS:
        raise UserError(
            f"--preset {flags.preset}: is for loading the public weights; train with {' or '.join(PRESETS)}"
        )
    config = replace(
        PRESETS[flags.preset],
        **_asked(flags),
        add_raw=add_raw and flags.composition == "nonlinear",
        temporal=flags.n_frames_G > 1,
        crop_ref=crop_ref,
    )
    return replace(config, n_adaptive=min(config.n_adaptive, config.n_downsample - 1))


def _asked(flags: GeneratorFlags) -> dict[str, Any]:
    """The fields that the flags name; sizes that are not given are not in it."""
    sizes = {name: getattr(flags, flag) for flag, name in _SIZES.items()}
    switches = {"mesh_flow": flags.mesh_flow == "on"}
    for name in _SWITCHES.values():
        switches.setdefault(name, getattr(flags, name, None))
    return {name: value for name, value in (sizes | switches).items() if value is not None}


def check_flags(flags: GeneratorFlags, found: GeneratorConfig, source: str) -> None:
    """Raise UserError, naming the flag, where a checkpoint's network is not the one that the flags describe.

    Sizes that are not given, and flags that matter in training only, are not looked at.
    """
    asked = {name: value for name, value in _asked(flags).items() if name != "mesh_flow"}
    _compare(asked, found, source)


def check_same(asked: GeneratorConfig, found: GeneratorConfig, source: str) -> None:
    """Raise UserError, naming the flag, where a checkpoint's network differs from the one asked for."""
    _compare(asked.to_json_dict(), found, source)
    if asked != found:
        raise UserError(
            f"--preset: {source} was trained with another preset; give that one, or another --name"
        )


def _compare(asked: dict[str, Any], found: GeneratorConfig, source: str) -> None:
    for flag, name in (_SIZES | _SWITCHES | _TRAINING).items():
        if name in asked and asked[name] != getattr(found, name):
            raise UserError(
                f"--{flag}: asks for {name} {asked[name]}, {source} was trained with {getattr(found, name)}; "
                "give the flags that it was trained with, or another --name"
            )
