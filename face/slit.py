"""Opening and closing of mouth and eyes: two edges of a slit, and the skin that goes with them."""

from __future__ import annotations

import numpy as np

from util.curves import smoothstep


class Slit:
    """A horizontal opening of the mesh; moves its edges to a given distance and the skin about them smoothly along."""

    def __init__(
        self,
        template: np.ndarray,
        edges: tuple[np.ndarray, np.ndarray],
        reach_up: float,
        reach_down: float,
        lower_share: float,
    ) -> None:
        """template (478, 3) face units; edges (upper, lower), both from corner to corner, corners shared.

        reach_up, reach_down: how far skin above and below is taken along, face units; lower_share: part of a change
        of the distance that the lower edge makes, 0 to 1.
        """
        self.upper, self.lower = edges[0][1:-1], edges[1][1:-1]
        self._share = lower_share
        hats = self._hats(template, edges)  # (478, n)
        top, bottom = (_height_at(template[:, 0], template[e]) for e in edges)
        touched = hats.sum(1) > 0
        y = template[:, 1]
        above = touched & (y <= (top + bottom) / 2)
        below = touched & ~above
        fade_up = _fade(np.maximum(top - y, 0), reach_up)
        fade_down = _fade(np.maximum(y - bottom, 0), reach_down)
        near = np.abs(template[:, 0] - template[edges[0], 0].mean()) < 1.6 * np.ptp(template[edges[0], 0]) / 2
        self._up = hats * (fade_up * above * near)[:, None]  # (478, n)
        self._down = hats * (fade_down * below * near)[:, None]
        for weights, edge in ((self._up, self.upper), (self._down, self.lower)):
            weights[edge] = np.eye(len(edge))
        self._up[self.lower] = 0
        self._down[self.upper] = 0
        position = np.linspace(-1, 1, len(edges[0]))[1:-1]
        self._shape = (1 - position**2) ** 0.7

    @staticmethod
    def _hats(template: np.ndarray, edges: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """(478, n) linear interpolation weights along x between the slit's inner points, 0 beyond its corners."""
        x = template[edges[0], 0]
        order = np.argsort(x)
        weights = np.zeros((len(template), len(x)))
        for i, k in enumerate(order):
            unit = np.zeros(len(x))
            unit[i] = 1
            weights[:, k] = np.interp(template[:, 0], x[order], unit, left=0, right=0)
        return weights[:, 1:-1]

    def gaps(self, canonical: np.ndarray) -> np.ndarray:
        """(B, n) vertical distance of the edges, pair by pair, face units."""
        return canonical[:, self.lower, 1] - canonical[:, self.upper, 1]

    def change(self, canonical: np.ndarray, delta: np.ndarray) -> np.ndarray:
        """(B, 478, 3) meshes whose edges are (B, n) `delta` face units further apart."""
        delta = delta.astype(np.float32)
        moved = canonical.copy()
        moved[..., 1] -= delta @ ((1 - self._share) * self._up.T).astype(np.float32)
        moved[..., 1] += delta @ (self._share * self._down.T).astype(np.float32)
        return moved

    def open_to(
        self, canonical: np.ndarray, gap: np.ndarray, centre: np.ndarray, smallest: float
    ) -> np.ndarray:
        """Open to a mean distance `gap` (B,) over the pairs `centre`, keeping the opening's own shape.

        No pair comes nearer than `smallest` (lips touch, they do not cross) unless `gap` is negative, which presses
        them by that much over one another; and none stays open beside closed ones.
        """
        current = self.gaps(canonical)
        shape = self._shape / self._shape[centre].mean()
        wanted = current + (gap - current[:, centre].mean(1))[:, None] * shape
        nearest = np.where(gap[:, None] < 0, gap[:, None] * shape, smallest)
        widest = np.maximum(smallest + 1.5 * gap[:, None] * shape, nearest)
        return self.change(canonical, np.clip(wanted, nearest, widest) - current)

    def close(self, canonical: np.ndarray, closure: np.ndarray) -> np.ndarray:
        """Close by the fraction `closure` (B,) of the present opening, 1 shut."""
        current = np.maximum(self.gaps(canonical), 0)
        return self.change(canonical, -closure[:, None] * current)


def _height_at(x: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """y of an edge (n, 3) at x (N,), held beyond its ends."""
    order = np.argsort(edge[:, 0])
    return np.interp(x, edge[order, 0], edge[order, 1])


def _fade(distance: np.ndarray, reach: float) -> np.ndarray:
    return smoothstep(1 - distance / reach)
