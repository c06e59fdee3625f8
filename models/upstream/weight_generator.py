"""The decoder's landmark modulation, made from the references."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from models.upstream.config import UpstreamConfig
from models.upstream.label_embedding import Doubling
from models.upstream.layers import spectral_norm
from models.upstream.spade import BlockWeights, Modulation


class LevelWeights(NamedTuple):
    """Generated weights of one level: its decoder block's, and its label embedding's."""

    block: BlockWeights = BlockWeights()
    embed: Doubling | None = None


class WeightGenerator(nn.Module):
    """Four stacks of linear layers per level, applied to the rows of the level's energy."""

    def __init__(self, config: UpstreamConfig) -> None:
        super().__init__()
        self.channels = config.channels
        for i in range(config.n_adaptive):
            n_in, n_map = config.channels[i + 1], config.channels[i]
            per_row = n_map + 1  # weights and a bias
            # bn_1 has n_map channels: where these are half of n_in, half as many entries per row suffice
            both = per_row if n_map != n_in else 2 * per_row
            sizes = {"0": 2 * per_row, "1": both, "s": 2 * per_row, "e": per_row}
            for part, n_out in sizes.items():
                layers = [spectral_norm(nn.Linear(n_in, n)) for n in (n_in, n_in, n_out)]
                setattr(self, f"fc_spade_{part}_{i}", nn.Sequential(*layers))

    def forward(self, energies: list[Tensor]) -> list[LevelWeights]:
        """energies: [B, c, c] of levels 1, 2, ... Returns the weights of levels 0, 1, ..."""
        return [self._level(i, energy) for i, energy in enumerate(energies)]

    def _level(self, i: int, energy: Tensor) -> LevelWeights:
        n_in, n_map = self.channels[i + 1], self.channels[i]
        made = {part: getattr(self, f"fc_spade_{part}_{i}")(energy).flatten(1) for part in "01se"}
        block = BlockWeights(
            bn_0=_modulation(made["0"], n_in, n_map),
            bn_1=_modulation(made["1"], n_map, n_map),
            bn_s=_modulation(made["s"], n_in, n_map),
        )
        weight, bias = made["e"].split([n_in * n_map, n_in], dim=1)
        # n_in bias entries are made for n_map outputs; the public code lets the rest be
        return LevelWeights(block, Doubling(weight.unflatten(1, (n_in, n_map)).mT, bias[:, :n_map]))


def _modulation(vector: Tensor, n_out: int, n_map: int) -> Modulation:
    """Cut [B, 2 * n_out * (n_map + 1)] into gamma's weight and bias and beta's, and drop the biases.

    That the public code makes these biases without using them is what its results show.
    """
    gamma, _, beta, _ = vector.split([n_out * n_map, n_out] * 2, dim=1)
    return Modulation(gamma.unflatten(1, (n_out, n_map)), beta.unflatten(1, (n_out, n_map)))
