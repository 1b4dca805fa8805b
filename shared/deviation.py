"""The standard deviation of products over a whole table, without computing them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK = 10_000


class Deviation:
    """Of <w, c_i> over the rows c of a table (N, k): the square root of w^T C w, with their covariance C.

    As `std` with N - 1 gives it for all products, but for rounding: products are float32, blocks are summed in float64.
    Keeps 8 k^2 bytes, and a call takes k^2 products whatever N is.
    """

    def __init__(self, rows: NDArray[np.float32]) -> None:
        count, width = rows.shape
        mean = rows.mean(axis=0, dtype=np.float64)
        total = np.zeros((width, width))
        for start in range(0, count, _BLOCK):
            centred = rows[start : start + _BLOCK] - mean.astype(np.float32)
            total += centred.T @ centred
        self._covariance = total / max(count - 1, 1)

    def __call__(self, weights: NDArray[np.floating]) -> float:
        """weights: w, (k,)."""
        wide = weights.astype(np.float64)
        return float(np.sqrt(max(wide @ self._covariance @ wide, 0.0)))
