"""Public weight files (`latest_net_G.pth`, `latest_net_D.pth`) checked and turned into checkpoints of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.upstream.combiner import build_generator
from models.upstream.config import DiscriminatorConfig, UpstreamConfig
from models.upstream.discriminator import UpstreamDiscriminator
from util.checkpoints import checkpoint_path, load_tensors, save_tensors
from util.errors import UserError, remark
from util.files import check_file

FORMAT = "upstream"
_NEEDED = "a public weight file (latest_net_G.pth or latest_net_D.pth)"
_CONFIGS = {"G": UpstreamConfig, "D": DiscriminatorConfig}


@dataclass(frozen=True)
class Imported:
    """A public file that was turned into a checkpoint."""

    path: Path
    config: UpstreamConfig | DiscriminatorConfig
    dropped: tuple[str, ...]  # keys that the network has no use for

    def __str__(self) -> str:
        if isinstance(self.config, DiscriminatorConfig):
            what = f"discriminator of {self.config.in_channels} input channels"
        else:
            what = f"generator trained with {self.config.flags}"
        return f"{self.path}: {what}"


@dataclass(frozen=True)
class KeyCheck:
    """How a state dict differs from what a network needs."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    different: tuple[str, ...]  # "key: what it is, needed what it should be"

    @classmethod
    def of(cls, state: Mapping[str, Tensor], net: nn.Module) -> KeyCheck:
        """Compare names, shapes and number types."""
        needed = {key: _signature(value) for key, value in net.state_dict().items()}
        found = {key: _signature(value) for key, value in state.items()}
        both = (key for key in needed if key in found and needed[key] != found[key])
        return cls(
            missing=tuple(f"{key}: {needed[key]}" for key in needed if key not in found),
            extra=tuple(key for key in found if key not in needed),
            different=tuple(f"{key}: {found[key]}, needed {needed[key]}" for key in both),
        )

    @property
    def fits(self) -> bool:
        """Whether the network can be filled; what is left over does not matter."""
        return not self.missing and not self.different

    def lines(self) -> Iterator[str]:
        """One line for every key."""
        yield from (f"missing {entry}" for entry in self.missing)
        yield from (f"different {entry}" for entry in self.different)
        yield from (f"left over {key}" for key in self.extra)

    def __str__(self) -> str:
        counts = {"missing": self.missing, "different": self.different, "left over": self.extra}
        return "; ".join(f"{len(keys)} {name} ({keys[0]}, ...)" for name, keys in counts.items() if keys)


def import_upstream(weights: str | Path, out: str | Path | None = None, **unrecorded: bool) -> Imported:
    """Check a public file and write it as safetensors; without `out` to checkpoints/<its folder>/upstream_G or _D.

    unrecorded: `warped`, `add_raw_loss` or `align_corners` of a generator, which the weights do not tell.
    Keys that the network does not know are dropped with a remark, as the public code does. Nothing in the file
    is run. Raises UserError, in one line, where the file is anything else or does not fit; each key that does not
    fit has been remarked before.
    """
    weights = check_file(weights, "--weights", _NEEDED)
    source = f"--weights {weights}"
    state = _read(weights, source)
    kind = "D" if any(key.startswith("discriminator_0.") for key in state) else "G"
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    try:
        config = _CONFIGS[kind].detect(shapes, **(unrecorded if kind == "G" else {}))
        net = _build(config)
    except UserError as error:
        raise UserError(f"{source}: {error}; {_NEEDED} is needed") from None
    check = KeyCheck.of(state, net)
    for line in check.lines():
        remark(line)
    if not check.fits:
        raise UserError(f"{source}: does not fit the network that its keys tell of: {check}")
    kept = {key: state[key] for key in net.state_dict()}
    spoilt = [key for key, value in kept.items() if not value.isfinite().all()]
    if spoilt:
        raise UserError(f"{source}: {spoilt[0]} holds values that are no numbers; the training had failed")
    path = (
        Path(out) if out else checkpoint_path(f"{weights.resolve().parent.name}/upstream_{kind}.safetensors")
    )
    note = {"format": FORMAT, "network": kind, "config": asdict(config), "source": weights.name}
    save_tensors(path, kept, note)
    return Imported(path, config, check.extra)


def load_upstream(path: str | Path, flag: str = "checkpoint") -> nn.Module:
    """The network of an imported checkpoint, on the CPU, in eval mode; its `config` says what it is.

    Raises UserError, in one line, where the file is missing, damaged, or was not made by `import_upstream`.
    """
    state, note = load_tensors(path, flag)
    source = f"{flag} {path}"
    if note.get("format") != FORMAT or note.get("network") not in _CONFIGS:
        raise UserError(f"{source}: is no imported public network; make one with scripts/import_upstream.py")
    try:
        net = _build(_CONFIGS[note["network"]](**note["config"]))
    except (KeyError, TypeError, UserError) as error:
        raise UserError(f"{source}: its note is damaged ({error}); import the public file again") from None
    check = KeyCheck.of(state, net)
    if not check.fits or check.extra:
        raise UserError(f"{source}: does not fit its own note: {check}; import the public file again")
    net.load_state_dict(state, assign=True)
    return net.eval()


def _read(path: Path, source: str) -> dict[str, Tensor]:
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch lets through whatever the damaged bytes provoke
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign:
            reason = f"asks for {foreign[1]}, which is no part of weights; nothing of it was run"
        else:
            reason = f"is damaged, cut off or no weight file ({type(error).__name__})"
        raise UserError(f"{source}: {reason}; {_NEEDED} is needed") from None
    if not isinstance(found, dict) or not found:
        raise UserError(f"{source}: holds no named weights; {_NEEDED} is needed")
    odd = next((k for k, v in found.items() if not isinstance(k, str) or not _is_plain(v)), None)
    if odd is not None:
        raise UserError(f"{source}: {odd!r} is no plain tensor; {_NEEDED} is needed")
    return found


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided


def _signature(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _build(config: UpstreamConfig | DiscriminatorConfig) -> nn.Module:
    with torch.device("meta"):  # no weights are made that would be thrown away
        return (
            build_generator(config) if isinstance(config, UpstreamConfig) else UpstreamDiscriminator(config)
        )
