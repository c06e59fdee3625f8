"""Curves that several rooms draw with."""

from __future__ import annotations

import numpy as np


def smoothstep(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, and between them a cubic without a kink at either end; elementwise, x's dtype."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)
