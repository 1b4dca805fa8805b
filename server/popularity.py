"""From a released, noisy count to the log popularity the scorer adds.

Everything here is post-processing of a release plus public facts (the noise that was added), so it costs nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Least share of the counts' variance that must be signal for them to be used at all.
LEAST_SIGNAL = 0.5


def log_popularity(counts: NDArray[np.float64], *, noise_std: float) -> NDArray[np.float32]:
    """Centred log popularity, float32 (N,).

    Noisy counts are shrunk towards their mean by the share of their variance that noise explains (James & Stein
    1961). When noise explains more than half, popularity is flat: a ranking should not rest on a mostly random
    popularity. Without noise nothing is shrunk.
    """
    mean = float(counts.mean())
    spread = float(counts.var())
    kept = max(0.0, 1.0 - noise_std**2 / spread) if spread > 0 else 0.0
    if kept < LEAST_SIGNAL:
        return np.zeros(len(counts), dtype=np.float32)
    shrunk = np.maximum(mean + kept * (counts - mean), 0.0)
    logs = np.log1p(shrunk)
    return (logs - logs.mean()).astype(np.float32)
