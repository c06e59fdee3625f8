"""Imported public weights in the pipeline: a tiny network of the public kind makes a person's frames."""

from __future__ import annotations

from pathlib import Path

import faces
import pytest
import torch
from tiny_generator import frame_inputs, references

from models import fewshot
from models.upstream import UpstreamConfig, UpstreamInput, build_generator, import_upstream
from models.upstream.synthesiser import UpstreamSynthesiser
from options import parse_demo
from talking_head import TalkingHead
from util.errors import UserError

TINY = {"ngf": 2, "nff": 2, "n_blocks_flow": 1}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run "public" that holds imported weights."""
    monkeypatch.setattr(fewshot, "checkpoint_path", lambda name: tmp_path / name)
    torch.manual_seed(0)
    network = build_generator(UpstreamConfig(n_shot=2, **TINY))
    shown, x = references(k=2), frame_inputs()
    given = UpstreamInput(
        x.sketch, shown.sketch, shown.image, x.warp_image, x.warp_sketch, x.ani_image, x.ani_sketch
    )
    with torch.no_grad():
        for _ in range(4):  # random weights are tame once their spectral norms and statistics are known
            network.train()(given)
    folder = tmp_path / "public"
    folder.mkdir()
    torch.save(network.state_dict(), folder / "latest_net_G.pth")
    import_upstream(folder / "latest_net_G.pth", folder / fewshot.IMPORTED)
    return folder


def test_it_computes_what_the_public_network_does(run: Path) -> None:
    synthesiser = UpstreamSynthesiser.load(run / fewshot.IMPORTED)
    given, inputs = references(batch=1, k=2), frame_inputs()
    made = synthesiser.synthesise(synthesiser.encode(given), inputs)
    assert made.image.shape == (2, 3, 32, 32)
    assert made.image.isfinite().all()
    assert set(made.warped) == {"ref", "ani"}
    assert synthesiser.config.embedding == "attention"
    with pytest.raises(UserError, match="--n_shot 3: these public weights take 1 or 2 references"):
        synthesiser.encode(references(batch=1, k=3))


def test_the_pipeline_takes_the_imported_run(run: Path) -> None:
    words = ["--example", "--netG", "fewshot", "--name", "public", "--gpu_ids", "-1"]
    flags = ["--warp_ref", "--warp_ani", "--spade_combine", "--adaptive_spade", "--use_new"]
    options = parse_demo([*words, *flags])
    head = TalkingHead.load(options)
    frame = next(head.animate(faces.reference(), head.driving(options, faces.reference())))
    assert frame.shape == (256, 256, 3)
    assert frame.std() > 0
    with pytest.raises(UserError, match="--spade_combine: asks for composition linear"):
        TalkingHead.load(parse_demo([*words, "--warp_ref", "--warp_ani", "--adaptive_spade", "--use_new"]))
