"""Which of many items are worth scoring: a ranking of a large catalogue scores a thousand of them and not all.

    estimate = <taste, [plain | output]> + added + prior(<follow, codes>)

is the score of `shared.model` with both products read from int8 rows. The best by it are proposed, and whoever asks
scores those exactly (`State.scores(items=...)`). Where not all rows are read, parts cannot be added up before the best
are known: then the best by taste, the best by the prior and the most popular are proposed together.

Only numpy is needed: vectors are public and of the catalogue, so one proposer serves every person and adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.cells import open_index
from client.retrieval import Floats, Indices, Scan, largest

#: Items up to which all are scored: fewer bytes than it takes to propose some.
WHOLE = 20_000
#: Items that are proposed unless somebody asks for another number.
PROPOSED = 1_000
#: How many times as many are looked for where some may not be shown, at most.
_WIDER = 10


@dataclass(frozen=True)
class Wanted:
    """What a person's state asks of the catalogue's vectors.

    taste: float32 (d + k,), for [plain | output]. follow: float32 (c,), for the codes, None without a prior. added:
    float32 (N,), parts of the score that are no product, such as popularity; not estimated. prior: what estimates of
    q, (N,), are worth in the score.
    """

    taste: Floats
    added: Floats
    follow: Floats | None = None
    prior: Callable[[Floats], Floats] | None = None


class Proposer:
    """Proposes items of one catalogue. taste: rows [plain | output], (N, d + k). codes: (N, c), None without a prior.

    Rows are kept and not copied. bytes: memory it takes besides.
    """

    def __init__(self, taste: Floats, codes: Floats | None = None) -> None:
        self._taste = open_index(taste)
        self._codes = None if codes is None else open_index(codes)
        self.bytes = self._taste.bytes + (self._codes.bytes if self._codes else 0)

    def propose(self, wanted: Wanted, *, count: int = PROPOSED, allowed: NDArray[np.bool_] | None = None) -> Indices:
        """About `count` items that may be shown and are likely to be the best ones, int64, each once, in any order.

        allowed: bool (N,), None allows all. When few are allowed, all of those.
        """
        size = len(wanted.added)
        left = size if allowed is None else int(allowed.sum())
        if allowed is not None and left <= max(count, WHOLE):
            return np.flatnonzero(allowed)
        if isinstance(self._taste, Scan) and (self._codes is None or isinstance(self._codes, Scan)):
            return self._estimated(self._taste, self._codes, wanted, count=count, allowed=allowed)
        wider = min(count * size // left, _WIDER * count, size)
        found = [largest(wanted.added, wider)] if np.ptp(wanted.added) > 0 else []
        if wanted.taste.any():
            found.append(self._taste.best(wanted.taste, wider))
        if self._codes is not None and wanted.follow is not None and wanted.follow.any():
            found.append(self._codes.best(wanted.follow, wider))
        together = np.unique(np.concatenate(found)) if found else np.arange(wider)
        return together if allowed is None else together[allowed[together]]

    @staticmethod
    def _estimated(
        taste: Scan, codes: Scan | None, wanted: Wanted, *, count: int, allowed: NDArray[np.bool_] | None
    ) -> Indices:
        """The best by what their whole score is estimated to be."""
        total = wanted.added
        if wanted.taste.any():
            total = total + taste.estimates(wanted.taste)[0]
        if codes is not None and wanted.follow is not None and wanted.prior is not None:
            total = total + wanted.prior(codes.estimates(wanted.follow)[0])
        if allowed is not None:
            total = np.where(allowed, total, np.float32(-np.inf))
        return np.sort(largest(total, count))
