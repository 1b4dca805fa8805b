"""The one-round prior: what usually follows what, learned in closed form from sums over devices.

    f(u) = [sum of 0.5^(age / h) c_t over past events, for each half-life h]      c_t: code of event t's item
    A    = sum of f f^T,  T = sum of f c_next^T                                  over events and devices
    M    = (A + lambda I)^-1 T,   q_i(u) = <M^T f(u), c_i>

Ridge regression (Hoerl & Kennard 1970) has sums as sufficient statistics, so that one exchange is enough: each device
sends its A and T once. `q` estimates how likely an item comes next. Where codes are exact (one direction an item), one
short half-life makes it a smoothed Markov chain and a long one makes it an autoencoder like EASE (Steck, WWW 2019).

Predictions of a regression may be negative and know nothing of rare items, so the scorer works with

    soft(q)_i = (q_i + sqrt(q_i^2 + 4 e_i^2)) / 2,   e_i = floor * popularity share of item i

which is q where q is large and the popularity where the prior knows nothing.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from shared.errors import AdapterError
from shared.items import ItemTable
from shared.layout import MOMENTS, PriorLayout
from shared.sections import Prior
from shared.windows import IGNORE, Windows

#: Weight of A in a device's reply. A is the longer of the two and the one that noise hurts less, as the ridge covers
#: it; a small weight leaves T more of a common clip.
BALANCE = 0.1**0.5
#: Rows of A that are made in one product.
BLOCK = 256
#: Name of the solved matrix in a state.
PRIOR = "prior"


def history_features(batch: Windows, table: ItemTable, layout: PriorLayout, *, last: bool = False) -> torch.Tensor:
    """f after each event, float32 (B, L, F); with `last` only after the last event of each window, (B, 1, F).

    Events that count towards content(u) count 1, skips minus `skip_penalty`, impressions nothing.
    """
    age = batch.ages(last=last)
    liked, skipped = batch.content, batch.seen & ~batch.content
    counted = (liked.float() - layout.skip_penalty * skipped)[..., None]  # (B, L, 1)
    parts = []
    for half_life, width in zip(layout.half_lives, layout.widths, strict=True):
        decay = torch.where(age >= 0, 0.5 ** (age / half_life), 0.0)
        parts.append(decay @ (table.codes[:, :width][batch.items] * counted))
    return torch.cat(parts, dim=-1)


@torch.no_grad()
def window_moments(
    batch: Windows, table: ItemTable, layout: PriorLayout, *, clip: float = np.inf
) -> dict[str, NDArray[np.float32]]:
    """Sum over windows of their moments (`BALANCE` times A's triangle, and T), each window's clipped to L2 norm `clip`.

    batch: training windows with targets. Returns float32 arrays as in `layout.shapes`.
    """
    features = history_features(batch, table, layout)
    if np.isinf(clip):  # nothing to clip, so one product does for all windows
        squares, products = _moments(features.flatten(0, 1), batch.targets.flatten(), table, layout)
    else:
        squares, products = (np.zeros(shape, dtype=np.float32) for shape in layout.shapes.values())
        for row in range(len(batch)):
            square, product = _moments(features[row], batch.targets[row], table, layout)
            norm = float(np.hypot(np.linalg.norm(square), np.linalg.norm(product)))
            factor = min(1.0, clip / norm) if norm else 1.0
            squares += factor * square
            products += factor * product
    return dict(zip(MOMENTS, (squares, products), strict=True))


def _moments(
    features: torch.Tensor, targets: torch.Tensor, table: ItemTable, layout: PriorLayout
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`BALANCE` times A's upper triangle, and T, float32, of features (n, F) with targets int64 (n,)."""
    known = targets != IGNORE
    f = features[known]
    after = table.codes[:, : layout.output][targets[known]]  # (., k)
    return _upper_square(BALANCE * f, f), (f.T @ after).numpy()


def _upper_square(left: torch.Tensor, right: torch.Tensor) -> NDArray[np.float32]:
    """The upper triangle of left^T right, row by row, float32 (F (F + 1) / 2,); what lies below it is not computed."""
    size = right.shape[1]
    triangle = np.empty(size * (size + 1) // 2, dtype=np.float32)
    start = 0
    for first in range(0, size, BLOCK):
        block = (left[:, first : first + BLOCK].T @ right[:, first:]).numpy()
        for row, values in enumerate(block):
            stop = start + len(values) - row
            triangle[start:stop] = values[row:]
            start = stop
    return triangle


@lru_cache(maxsize=2)
def _triangle(size: int) -> NDArray[np.int64]:
    """Places of the upper triangle in a raveled (size, size) matrix."""
    rows, columns = np.triu_indices(size)
    return rows * size + columns


def solve_prior(
    triangle: NDArray[np.floating], targets: NDArray[np.floating], *, ridge: float, noise_std: float = 0.0
) -> NDArray[np.float32]:
    """M, float32 (F, k), from summed moments as `window_moments` gives them.

    noise_std: standard deviation of the privacy noise in each entry of the moments. Noise makes A's small eigenvalues
    meaningless and even negative; the ridge is raised to the noise's own spectral norm, about noise_std * 2 sqrt(F)
    (Wigner 1958), and eigenvalues below zero count as zero. AdapterError when the shapes do not belong together.
    """
    size = len(targets)
    if triangle.shape != (size * (size + 1) // 2,):
        raise AdapterError(f"found moments of shapes {triangle.shape} and {targets.shape}; they do not fit together")
    square = np.zeros((size, size), dtype=np.float64)
    square.ravel()[_triangle(size)] = triangle
    square += np.triu(square, 1).T
    square /= BALANCE
    noise_std /= BALANCE
    if noise_std == 0:
        square[np.diag_indices(size)] += ridge
        return np.linalg.solve(square, targets.astype(np.float64)).astype(np.float32)
    values, vectors = np.linalg.eigh(square)
    damped = np.maximum(values, 0.0) + ridge + 2 * noise_std * np.sqrt(size)
    return (vectors @ ((vectors.T @ targets.astype(np.float64)) / damped[:, None])).astype(np.float32)


def soften(q: torch.Tensor, share: torch.Tensor, *, floor: float) -> torch.Tensor:
    """The `soft(q)` above, positive, float32 (..., N). share: (N,). floor: above 0."""
    least = floor * share
    larger = (q.abs() + torch.hypot(q, 2 * least)) / 2  # the positive s with s^2 - |q| s = e^2
    return torch.where(q < 0, least * (least / larger), larger)  # (q + root) / 2 would cancel to 0 for q < 0


def prior_scores(
    q: torch.Tensor, share: torch.Tensor, *, settings: Prior, fused: bool, deviation: float | None = None
) -> torch.Tensor:
    """The prior's part of the scores, kappa log soft(q) + fusion q / std q; float32 (..., N).

    q: the prior's estimates, float32 (..., N). share: (N,). fused: with the second term, which only a ranking has.
    deviation: std q over the catalogue, where q is of some of its items only.
    """
    expected = settings.kappa * torch.log(soften(q, share, floor=settings.floor))
    if fused and settings.fusion:
        spread = q.std(dim=-1, keepdim=True) if deviation is None else q.new_tensor([deviation])
        expected = expected + settings.fusion * q / spread.clamp(min=1e-12)
    return expected
