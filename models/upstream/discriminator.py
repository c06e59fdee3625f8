"""netD: one PatchGAN over landmarks and images, and the losses it gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from models.upstream.config import DiscriminatorConfig

FEATURE_WEIGHT = 10.0


class PatchDiscriminator(nn.Module):
    """Convolutions whose last one judges patches."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.n_models = config.n_layers + 2
        n = config.ndf
        self.model0 = nn.Sequential(nn.Conv2d(config.in_channels, n, 4, 2, 2), nn.LeakyReLU(0.2))
        for i in range(1, config.n_layers + 1):
            n_in, n = n, 2 * n
            conv = nn.Conv2d(n_in, n, 4, 2 if i < config.n_layers else 1, 2, bias=False)
            normed = nn.Sequential(spectral_norm(conv), nn.InstanceNorm2d(n))
            setattr(self, f"model{i}", nn.Sequential(normed, nn.LeakyReLU(0.2)))
        setattr(self, f"model{config.n_layers + 1}", nn.Sequential(nn.Conv2d(n, 1, 4, 1, 2)))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for i in range(self.n_models):
            x = getattr(self, f"model{i}")(x)
            features.append(x)
        return features


class UpstreamDiscriminator(nn.Module):
    """The public discriminator.

    Takes [B, 8, H, W]: reference landmarks (1), reference image (3), target landmarks (1), image to judge (3).
    Returns all layers' results; the last, [B, 1, h, w], is the judgement, high for real.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.discriminator_0 = PatchDiscriminator(config)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.discriminator_0(x)


def discriminator_losses(real: Sequence[Tensor], fake: Sequence[Tensor]) -> dict[str, Tensor]:
    """Hinge losses that train the discriminator, from its results for real and made images."""
    return {"D_real": F.relu(1 - real[-1]).mean(), "D_fake": F.relu(1 + fake[-1]).mean()}


def generator_losses(real: Sequence[Tensor], fake: Sequence[Tensor]) -> dict[str, Tensor]:
    """Hinge and feature-matching losses that train the generator. Results for real images are taken as given."""
    pairs = zip(real[:-1], fake[:-1], strict=True)
    matching = sum(F.l1_loss(f, r.detach()) for r, f in pairs)
    return {"G_GAN": -fake[-1].mean(), "G_GAN_Feat": FEATURE_WEIGHT * matching}
