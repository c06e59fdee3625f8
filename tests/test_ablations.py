"""Every ablation trains, comes back from its checkpoint, and synthesises from any number of references."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_generator import frame_inputs, references
from tiny_training import TinyFaces, tiny_trainer

from models.fewshot import load_generator
from options import TrainOptions

SIZES = (
    "--fineSize 32 --preset lite --ngf 4 --nff 4 --n_downsample_G 2 --ndf 4 --n_layers_D 2 --batchSize 2 --nThreads 0 "
    "--n_shot 2 --gpu_ids -1 --no_vgg_loss --niter 1 --epoch_samples 40 --display_freq 1000"
)
HYBRID = "--adaptive_spade --warp_ref --warp_ani --spade_combine --add_raw_loss --use_new"
ABLATIONS = {
    "full method": HYBRID,
    "no_atten": f"{HYBRID} --no_atten",
    "no_warp": f"{HYBRID} --no_warp",
    "linear": HYBRID.replace("--spade_combine", ""),
    "without use_new": HYBRID.replace("--use_new", ""),
    "without warp_ref": HYBRID.replace("--warp_ref", ""),
    "without warp_ani": HYBRID.replace("--warp_ani", ""),
    "without adaptive_spade": HYBRID.replace("--adaptive_spade", ""),
    "without mesh_flow": f"{HYBRID} --mesh_flow off",
    "same_flownet": f"{HYBRID} --same_flownet",
    "one shot": f"{HYBRID} --n_shot 1",
    "temporal": f"{HYBRID} --n_frames_G 2 --niter_single 0",
}


@pytest.mark.parametrize("flags", ABLATIONS.values(), ids=ABLATIONS)
def test_ablation_trains_reloads_and_synthesises(tmp_path: Path, flags: str) -> None:
    options = TrainOptions.parse([*SIZES.split(), *flags.split()])
    trainer, losses = tiny_trainer(tmp_path, options), []
    trainer.fit(TinyFaces(40, options.reference.n_shot), lambda _, result: losses.append(result.losses))
    assert len(losses) == 20
    assert all(math.isfinite(v) for terms in losses for v in terms.values())
    assert trainer.state.guard.n_skipped == 0
    generator = load_generator(tmp_path / "latest_G.safetensors")
    assert generator.config.embedding == options.generator.embedding
    assert generator.config.composition == options.generator.composition
    trained = trainer.state.average.module.eval()
    for k in (1, 4, 8, 32):
        shown, inputs = references(k=k), frame_inputs(previous=generator.config.temporal)
        with torch.inference_mode():
            made = generator(shown, inputs)
            assert torch.allclose(made.image, trained(shown, inputs).image, atol=1e-6)
        assert made.image.shape == (2, 3, 32, 32)
        assert made.image.isfinite().all()
        assert made.attention.shape[1] == k


def test_temporal_training_starts_from_single_frames(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The published order: single frames first, then slices, with what looks back starting anew."""
    single = [*SIZES.split(), *HYBRID.split()]
    first = tiny_trainer(tmp_path, TrainOptions.parse(single))
    first.fit(TinyFaces(40))
    options = TrainOptions.parse(
        [*single, *"--n_frames_G 2 --niter_single 1 --niter 2 --continue_train".split()]
    )
    second = tiny_trainer(tmp_path, options)
    assert "was trained on single frames" in capsys.readouterr().err
    assert second.state.position.epoch == 2
    kept = first.state.generator.state_dict()
    grown = second.state.generator.state_dict()
    assert all(torch.equal(kept[name], grown[name]) for name in kept)
    assert {name for name in grown if name not in kept}
    losses = []
    second.fit(TinyFaces(40), lambda _, result: losses.append((len(result.made), result.losses)))
    assert {n for n, _ in losses} == {2}
    assert all(math.isfinite(v) for _, terms in losses for v in terms.values())
    assert load_generator(tmp_path / "latest_G.safetensors").config.temporal
