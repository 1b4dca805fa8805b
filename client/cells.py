"""Rows in cells around centres, of which a search reads the nearest: for more rows than can be read in time.

An inverted file (Sivic & Zisserman 2003; Jegou et al. 2011): about as many centres as a cell has rows, by k-means on a
sample, and the int8 rows of one cell side by side in memory. How many rows must be read for the best to be among them
depends on the rows: item vectors lie in groups, and a few per cent are enough; of random directions no part is. So that
is measured when cells are built, and where most rows would have to be read, all of them are.
"""

from __future__ import annotations

import logging
from functools import lru_cache

import numpy as np

from client.retrieval import SCANNED, Floats, Indices, IntegerRows, Quantised, Scan, integer_products, largest, ranked
from shared.errors import ConfigError

#: Rows that centres are fitted to, and steps of k-means.
_FITTED, _STEPS = 100_000, 6
#: Shares of all rows that may be read, the smallest that finds enough is taken; queries it is tried with.
SHARES, _TRIED = (0.02, 0.05, 0.1, 0.2), 24
#: Share of the `_BEST` best rows that must be found, on average over those queries.
RECALL, _BEST = 0.98, 100
#: How many times as many rows as are wanted are read as they are.
_AGAIN = 4
_BLOCK = 20_000
_LOG = logging.getLogger(__name__)


class Cells:
    """Finds most of the best rows (N, d) without reading all. The rows are kept and not copied.

    share: part of the rows that a search reads. recall: what that found of the 100 best when it was tried. bytes: what
    it keeps besides. seed: of the sample that centres are fitted to. ConfigError without NumKong.
    """

    def __init__(self, rows: Floats, *, seed: int = 0) -> None:
        if not integer_products():
            raise ConfigError("found no numkong, which cells need; install homerank[large]")
        self._rows = rows
        generator = np.random.default_rng(seed)
        self._centres = _centres(rows, round(len(rows) ** 0.5), generator)
        cell = nearest(rows, self._centres)
        order = np.argsort(cell, kind="stable")  # rows, cell by cell
        self._sizes = np.bincount(cell, minlength=len(self._centres))
        self._quantised = Quantised(rows)
        ends = np.cumsum(self._sizes)
        codes = self._quantised.give_away()[order]
        spans = list(zip((ends - self._sizes).tolist(), ends.tolist(), strict=True))
        self._integers = [IntegerRows(codes[start:end]) for start, end in spans]
        self._members = [order[start:end] for start, end in spans]
        self.bytes = sum(one.bytes for one in self._integers) + self._centres.nbytes + order.nbytes
        self.share, self.recall = self._tried(generator)

    def best(self, query: Floats, count: int) -> Indices:
        """Most of the `count` rows with the largest product with the query (d,), best first; int64."""
        return self._found(query, count, self.share)

    def _found(self, query: Floats, count: int, share: float) -> Indices:
        """`best` of so large a share of the rows."""
        order = np.argsort(-(self._centres @ query), kind="stable")
        order = order[self._sizes[order] > 0]
        enough = int(np.searchsorted(np.cumsum(self._sizes[order]), max(share * len(self._rows), _AGAIN * count))) + 1
        cells = order[:enough].tolist()
        asked, step, _ = self._quantised.asked(query)
        estimates = np.concatenate([self._integers[cell].products(asked, step) for cell in cells])
        members = np.concatenate([self._members[cell] for cell in cells])
        return ranked(self._rows, np.sort(members[largest(estimates, _AGAIN * count)]), query, count)

    def _tried(self, generator: np.random.Generator) -> tuple[float, float]:
        """The smallest share that finds enough, and the recall there; 1 and 1 where none does.

        Queries are means of a few rows, which is what a person's recent events come to.
        """
        count = min(_BEST, len(self._rows))
        queries = [self._rows[generator.integers(0, len(self._rows), 4)].mean(axis=0) for _ in range(_TRIED)]
        best = [set(largest(self._rows @ query, count).tolist()) for query in queries]
        for share in SHARES:
            pairs = zip(queries, best, strict=True)
            found = [len(true & set(self._found(query, count, share).tolist())) / count for query, true in pairs]
            if (recall := float(np.mean(found))) >= RECALL:
                return share, recall
        return 1.0, 1.0


def open_index(rows: Floats) -> Scan | Cells:
    """What finds rows quickest: up to `SCANNED` of them are all read, and so are more where cells would not help.

    Without NumKong too, and the log says so once.
    """
    if len(rows) <= SCANNED:
        return Scan(rows)
    if not integer_products():
        _warn_once(len(rows))
        return Scan(rows)
    cells = Cells(rows)
    return cells if cells.share < 1 else Scan(rows)


def nearest(rows: Floats, centres: Floats) -> Indices:
    """Which centre (K, d) each row (N, d) is nearest to, int64 (N,)."""
    half = 0.5 * (centres**2).sum(axis=1)
    blocks = range(0, len(rows), _BLOCK)
    return np.concatenate([(rows[start : start + _BLOCK] @ centres.T - half).argmax(axis=1) for start in blocks])


def _centres(rows: Floats, count: int, generator: np.random.Generator) -> Floats:
    """Centres (K, d) by k-means; a centre that no row is nearest to stays where it was."""
    sample = rows[np.sort(generator.choice(len(rows), min(_FITTED, len(rows)), replace=False))]
    centres = sample[generator.choice(len(sample), min(count, len(sample)), replace=False)].copy()
    for _ in range(_STEPS):
        cell = nearest(sample, centres)
        order, sizes = np.argsort(cell, kind="stable"), np.bincount(cell, minlength=len(centres))
        used = sizes > 0
        starts = (np.cumsum(sizes) - sizes)[used]
        centres[used] = np.add.reduceat(sample[order], starts, axis=0) / sizes[used, None]
    return centres


@lru_cache(maxsize=1)
def _warn_once(count: int) -> None:
    _LOG.warning(
        "found %s items and no numkong; every ranking reads all of them. Install homerank[large]", f"{count:,}"
    )
