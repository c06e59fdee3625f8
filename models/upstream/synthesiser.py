"""The public network in our pipeline: what `FewShotGenerator` offers, with imported weights."""

from __future__ import annotations

from pathlib import Path

from models.generator_config import GeneratorConfig
from models.upstream.combiner import UpstreamGenerator
from models.upstream.importer import load_upstream
from models.upstream.tensors import UpstreamInput
from util.batch import FrameInputs, References, Synthesis
from util.errors import UserError


class UpstreamSynthesiser:
    """Public weights as a `models.fewshot.FrameSynthesiser`; references are encoded for every frame, as published."""

    def __init__(self, network: UpstreamGenerator) -> None:
        """network: in evaluation mode."""
        self._network, has = network, network.config
        words = {True: "attention", False: "fewshot"}
        self.config = GeneratorConfig(
            embedding=words[has.use_new] if has.attention else "mean",
            composition="nonlinear" if has.spade_combine else "linear",
            adaptive_spade=has.adaptive_spade,
            warp_ref=has.warp_ref,
            warp_ani=has.warp_ani,
            warped=has.warped,
            mesh_flow=False,
        )

    @classmethod
    def load(cls, path: str | Path, flag: str = "--name", device: str = "cpu") -> UpstreamSynthesiser:
        """From a file that scripts/import_upstream.py wrote. Raises UserError as `load_upstream`."""
        network = load_upstream(path, flag)
        if not isinstance(network, UpstreamGenerator):
            raise UserError(f"{flag} {path}: holds a discriminator; a generator is needed")
        return cls(network.to(device).eval().requires_grad_(False))

    def encode(self, references: References) -> References:
        """The public network keeps nothing; raises UserError for a number of references that it cannot take."""
        k, has = references.image.shape[1], self._network.config
        if has.use_new and k not in (1, has.n_shot):
            raise UserError(
                f"--n_shot {k}: these public weights take 1 or {has.n_shot} references; name so many"
            )
        return references

    def synthesise(self, identity: References, inputs: FrameInputs) -> Synthesis:
        """Frames of B inputs."""
        batch = len(inputs.sketch)
        shown = identity.map(lambda t: t.expand(batch, *t.shape[1:]))
        given = UpstreamInput(
            tgt_lmark=inputs.sketch,
            ref_lmarks=shown.sketch,
            ref_imgs=shown.image,
            warp_ref_img=inputs.warp_image,
            warp_ref_lmark=inputs.warp_sketch,
            ani_img=inputs.ani_image,
            ani_lmark=inputs.ani_sketch,
        )
        made = self._network(given)
        tables = {}
        for name, values in {"warped": made.warped_image, "flow": made.flow, "weight": made.weight}.items():
            tables[name] = {k: v for k, v in values._asdict().items() if v is not None}
        return Synthesis(made.fake_image, made.fake_raw_image, made.img_ani, **tables)
