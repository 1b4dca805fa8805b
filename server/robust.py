"""The mean of the honest updates when some are hostile. Pure functions; numpy only.

    robust_mean(updates, names=("norm-filter", "median"), share=0.2)

Filters drop whole updates and wrap whatever follows; a centre turns what is left into one update and ends the chain
(`mean` when none is named). `share` bounds the hostile part of *one cohort*: a cohort is a draw, so choose it above
the part expected among all devices.

| name | kind | what it does |
|---|---|---|
| norm-filter | filter | drops updates longer than NORM_FACTOR times the median length |
| multi-krum | filter | drops the f updates farthest from their neighbours (Blanchard et al. 2017, arXiv 1703.02757) |
| mean | centre | no protection |
| trimmed-mean | centre | per entry, the mean without the f smallest and f largest (Yin et al. 2018, arXiv 1803.01498) |
| median | centre | per entry, the middle value, or the mean of the two middle ones (same source) |

None of them gives privacy, and all need to see single updates: with secure aggregation there are none to see, and the
sensitivity of these rules is not the clip norm that user-level privacy calibrates its noise to.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.adapter import AdapterState
from shared.errors import AdapterError, ConfigError

#: Honest lengths differ with the number of windows on a device; three median lengths are rarely exceeded.
NORM_FACTOR = 3.0
#: Columns worked on at once: 64 updates of so many float64 entries take 8 MB.
_CHUNK = 2**14

Rows = NDArray[np.float32]


def robust_mean(updates: Sequence[AdapterState], *, names: Sequence[str], share: float) -> AdapterState:
    """Estimate of the mean of the honest updates, float32, in the form of the first one.

    n updates, at most f = floor(share * n) of them hostile; f is counted before any filter, since a filter may drop
    honest ones too. Every filter and centre is told min(f, (m - 1) // 2) for the m updates left at its turn.

    | case | result |
    |---|---|
    | one update, or all updates equal | that update |
    | no names, or only `mean` | the mean |
    | n < 1 / share, so f = 0 | trimmed-mean and multi-krum equal the mean: no hostile update is expected |
    | the updates in another order | the same, up to rounding |
    | no update, or updates of different form | AdapterError |
    | an unknown or repeated name, or a name after a centre | ConfigError |
    | share below 0, or 0.5 and more: no majority is honest | ConfigError |

    Needs n * d * 4 bytes beside the updates, and as much again while a filter drops some.
    """
    check_rules(names, share=share)
    if not updates:
        raise AdapterError("found no update; expected at least one")
    shapes = updates[0].shapes
    if any(update.shapes != shapes for update in updates):
        raise AdapterError("found updates of different names or shapes in one round; expected one form")
    rows = np.stack([update.pack() for update in updates])  # (n, d)
    hostile = math.floor(share * len(rows) + 1e-9)  # 0.29 * 100 is 28.999999999999996
    *filters, centre = names if names and names[-1] in CENTRES else (*names, "mean")
    for name in filters:
        rows = rows[FILTERS[name](rows, _defensible(hostile, rows))]
    return AdapterState.unpack(CENTRES[centre](rows, _defensible(hostile, rows)), shapes)


def check_rules(names: Sequence[str], *, share: float) -> None:
    """ConfigError for an unknown or repeated name, a name after a centre, or a share outside [0, 0.5)."""
    known = (*FILTERS, *CENTRES)
    for position, name in enumerate(names):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"federation.robust: found {name!r}; expected some of {', '.join(known)}.{hint}")
        if name in names[:position]:
            raise ConfigError(f"federation.robust: found {name!r} twice; name each rule once")
        if name in CENTRES and position < len(names) - 1:
            raise ConfigError(
                f"federation.robust: found {names[position + 1]!r} after {name!r}, which leaves a single update;"
                f" expected filters ({', '.join(FILTERS)}) first and at most one of {', '.join(CENTRES)} last"
            )
    if not 0 <= share < 0.5:
        raise ConfigError(f"robust share: found {share:g}; expected 0 up to, not including, 0.5: half must be honest")


def norm_filter(rows: Rows, hostile: int) -> NDArray[np.bool_]:
    """Which updates (n,) to keep: those at most NORM_FACTOR times as long as the median of the non-zero ones.

    | case | kept |
    |---|---|
    | all zero | all |
    | zero updates (devices without data) | always, and they do not lower the bound |
    | all equally long | all |
    | one update | that one |
    | even number | the median is the mean of the two middle lengths |
    | hostile | not used: the median is the bound's only source |

    At least half of the updates stay. Sound while fewer than half of the non-zero ones are hostile.
    """
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    if not lengths.any():
        return np.ones(len(rows), dtype=np.bool_)
    return lengths <= NORM_FACTOR * np.median(lengths[lengths > 0])


def multi_krum(rows: Rows, hostile: int) -> NDArray[np.bool_]:
    """Which updates (n,) to keep: the n - f with the smallest sums of squared distances to their neighbours.

    Each is compared with its n - f - 2 nearest others, so f colluders cannot vouch for each other alone.

    | case | kept |
    |---|---|
    | f = 0 | all |
    | all equal | all |
    | ties at the border | all that tie, so the order of the updates decides nothing |
    | n < 2f + 3, where the theorem says nothing | by the nearest other at least; one outlier is still dropped |
    | one or two updates | all, as f is then 0 |
    """
    if hostile == 0:
        return np.ones(len(rows), dtype=np.bool_)
    distances = np.sort(_squared_distances(rows), axis=1)  # (n, n), the zero to itself first
    neighbours = max(1, len(rows) - hostile - 2)
    scores = distances[:, 1 : 1 + neighbours].sum(axis=1)
    return scores <= np.sort(scores)[len(rows) - hostile - 1]


def mean(rows: Rows, hostile: int) -> Rows:
    """The mean of each entry (d,), accumulated in float64. `hostile` is not used."""
    return trimmed_mean(rows, 0)


def trimmed_mean(rows: Rows, hostile: int) -> Rows:
    """The mean of each entry (d,) without its f smallest and f largest values.

    | case | result |
    |---|---|
    | f = 0 | the mean |
    | n = 2f + 1 | the median |
    | equal values | that value, whatever is trimmed |
    | f values of any size | a value between the smallest and largest honest one |
    """
    kept = slice(hostile, len(rows) - hostile)
    out = np.empty(rows.shape[1], dtype=np.float32)
    for columns in _chunks(rows):
        values = rows[:, columns] if hostile == 0 else np.sort(rows[:, columns], axis=0)
        out[columns] = values[kept].mean(axis=0, dtype=np.float64)
    return out


def median(rows: Rows, hostile: int) -> Rows:
    """The median of each entry (d,). `hostile` is not used.

    | case | result |
    |---|---|
    | odd n | the middle value |
    | even n | the mean of the two middle values |
    | fewer than n / 2 values of any size | a value between the smallest and largest honest one |
    | most values zero | zero, however large the rest: entries that few devices move stand still |
    """
    return trimmed_mean(rows, (len(rows) - 1) // 2)


#: Rows (n, d) and the number of hostile ones to which rows stay, bool (n,).
FILTERS: dict[str, Callable[[Rows, int], NDArray[np.bool_]]] = {"norm-filter": norm_filter, "multi-krum": multi_krum}
#: Rows (n, d) and the number of hostile ones to one row (d,).
CENTRES: dict[str, Callable[[Rows, int], Rows]] = {"mean": mean, "trimmed-mean": trimmed_mean, "median": median}


def _defensible(hostile: int, rows: Rows) -> int:
    return min(hostile, (len(rows) - 1) // 2)


def _chunks(rows: Rows) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, rows.shape[1], _CHUNK)]


def _squared_distances(rows: Rows) -> NDArray[np.float64]:
    """Between all pairs (n, n), in float64: float32 would overflow on a huge update and hide the small ones."""
    products = np.zeros((len(rows), len(rows)))
    for columns in _chunks(rows):
        part = rows[:, columns].astype(np.float64)
        products += part @ part.T
    lengths = np.diag(products)
    squared = np.maximum(lengths[:, None] + lengths[None, :] - 2 * products, 0.0)
    np.fill_diagonal(squared, 0.0)
    return squared
