"""Label embedding: the target's landmark sketch as maps that modulate every level of the decoder."""

from __future__ import annotations

from torch import Tensor, nn

from models.generator_config import GeneratorConfig
from models.layers import Conv1, Pyramid, double, lrelu, pointwise
from models.spade import SpadeWeights


class TargetEmbedding(nn.Module):
    """Encoder-decoder with skips; on adaptive levels the decoder's weights come from the references."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        channels = config.level_channels
        self.n_adaptive = config.n_made_levels
        self.down = Pyramid(1, channels, config.stem)
        self.up = nn.ModuleList(
            nn.Identity() if i < self.n_adaptive else Conv1(channels[i + 1], channels[i])
            for i in range(config.n_downsample)
        )

    def forward(self, sketch: Tensor, spade: tuple[SpadeWeights, ...]) -> list[Tensor]:
        """sketch (B, 1, H, W); spade: blended weights of the adaptive levels. Returns maps, finest first."""
        maps = self.down(sketch)
        for i in range(len(maps) - 2, -1, -1):
            below = maps[i + 1]
            if i < self.n_adaptive:
                level = pointwise(below, spade[i].embed_weight, spade[i].embed_bias)
            else:
                level = self.up[i](below)
            maps[i] = lrelu(maps[i] + double(level))
        return maps
