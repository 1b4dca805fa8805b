"""The unit in which additions to a score are measured: how far a person's scores lie apart.

Scores are logarithms whose size depends on the settings of the ranker. An addition of one spread means the same to a
ranking whatever they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def spread(scores: ArrayLike) -> float:
    """Standard deviation of the finite scores; 1.0 where they are all alike, so that an addition still counts.

    >>> spread([1.0, 3.0, float("-inf")])
    1.0
    """
    values = np.asarray(scores, dtype=np.float64)
    found = float(values[np.isfinite(values)].std()) if np.isfinite(values).any() else 0.0
    return found if found > 1e-9 else 1.0


def standardise(values: ArrayLike) -> Floats:
    """Mean 0 and standard deviation 1 over the finite values, float64 (N,); unknown ones (NaN) get 0, the mean.

    >>> standardise([1990.0, 2000.0, float("nan")]).tolist()
    [-1.0, 1.0, 0.0]
    """
    given = np.asarray(values, dtype=np.float64)
    known = np.isfinite(given)
    if not known.any():
        return np.zeros(len(given))
    return np.where(known, given - given[known].mean(), 0.0) / spread(given)
