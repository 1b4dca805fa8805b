"""Baselines without gradients: popularity, first-order Markov chain, item-kNN and EASE.

The last three are one scoring rule with different weights: a query that holds the history, newest events heaviest,
times an item-to-item matrix. They are written here because libraries score a user's set of items and know no order,
which is most of what these baselines are good for on next-item questions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from client.samples import seen_items
from client.store import History
from shared.metrics import ndcg, rank_of
from shared.schema import POSITIVE_KINDS, EventKind
from simulations.evaluation import Case
from simulations.quality.base import Training

#: Setting values that were chosen on validation cases, by name.
Chosen = Mapping[str, float]

#: Validation cases that settings are chosen on, at most.
TUNING_CASES = 1000
#: Weight of popularity among items that are otherwise equal: too small to change the order of any others.
TIE_BREAK = 1e-6

#: What an event's weight in the query is multiplied by with each newer event; 1 forgets nothing.
DECAYS = (1.0, 0.95, 0.9, 0.8, 0.6, 0.4)
#: The same for the Markov chain; 0 is the plain first-order chain.
MARKOV_DECAYS = (0.0, 0.2, 0.4, 0.6, 0.8)
#: Prior weight of popularity in a row of the Markov chain, in transitions; 1 only orders what never followed.
MARKOV_PRIORS = (1.0, 10.0, 100.0)
NEIGHBOURS = (50, 200, 1000)
SHRINKAGES = (0.0, 10.0)
RIDGES = (30.0, 100.0, 300.0, 1000.0, 3000.0)

_POSITIVE = np.array([kind in POSITIVE_KINDS for kind in EventKind])
_BATCH = 512


class TunedRanker(Protocol):
    """A ranker that says which settings were chosen for it."""

    @property
    def chosen(self) -> Chosen:
        """Setting values by name; empty when there was nothing to choose."""
        ...

    def scores(self, cases: Sequence[Case]) -> NDArray[np.float32]:
        """As `Ranker.scores`."""
        ...


AnyRanker = TypeVar("AnyRanker", bound=TunedRanker)


# --- what every baseline shares ----------------------------------------------------------------------------


def positives(history: History) -> NDArray[np.int64]:
    """Items of the positive events, oldest first, repeats kept; int64 (n,)."""
    return history.items[_POSITIVE[history.kinds]]


def popularity_counts(training: Training) -> NDArray[np.float32]:
    """Positive training events by item, float32 (N,)."""
    counts = np.zeros(training.items, dtype=np.float32)
    for history in training.histories:
        np.add.at(counts, positives(history), 1)
    return counts


def validation_ndcg(ranker: TunedRanker, cases: Sequence[Case]) -> float:
    """Mean NDCG@10 over the first TUNING_CASES of the cases, seen items removed; 0 without cases."""
    ranks: list[int] = []
    for start in range(0, min(len(cases), TUNING_CASES), _BATCH):
        batch = cases[start : min(start + _BATCH, TUNING_CASES)]
        rows = zip(batch, ranker.scores(batch), strict=True)
        ranks += [rank_of(row, case.target, removed=seen_items(case.history)) for case, row in rows]
    return float(ndcg(ranks, 10).mean()) if ranks else 0.0


def best_of(candidates: Iterable[AnyRanker], cases: Sequence[Case]) -> AnyRanker:
    """The candidate with the highest validation NDCG@10, the first of equals. Holds two at a time."""
    return max(candidates, key=lambda ranker: validation_ndcg(ranker, cases))


# --- popularity --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Popularity:
    """The same ranking for everybody. counts: float32 (N,)."""

    counts: NDArray[np.float32]
    chosen: Chosen

    def scores(self, cases: Sequence[Case]) -> NDArray[np.float32]:
        """Training counts, float32 (B, N)."""
        return np.tile(self.counts, (len(cases), 1))


def fit_popularity(training: Training, *, seed: int) -> Popularity:
    """Rank by the number of positive training events. seed: not used, nothing is random."""
    return Popularity(popularity_counts(training), {})


# --- item to item ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ItemToItem:
    """Score of item j: sum over history events of decay^age * weights[event, j], age 0 for the newest.

    weights: float32 (N, N). popularity: shares, float32 (N,), which order items that score the same, so an
    empty history is ranked by popularity. decay: 0 reads the newest event only.
    """

    weights: NDArray[np.float32]
    popularity: NDArray[np.float32]
    decay: float
    chosen: Chosen

    def scores(self, cases: Sequence[Case]) -> NDArray[np.float32]:
        """Float32 (B, N)."""
        query = np.zeros((len(cases), len(self.weights)), dtype=np.float32)
        for row, case in zip(query, cases, strict=True):
            items = positives(case.history)
            ages = np.arange(len(items) - 1, -1, -1)
            np.add.at(row, items, np.float32(self.decay) ** ages)
        return query @ self.weights + np.float32(TIE_BREAK) * self.popularity


def fit_markov(
    training: Training, *, seed: int, priors: Sequence[float] = MARKOV_PRIORS, decays: Sequence[float] = MARKOV_DECAYS
) -> ItemToItem:
    """Markov chain of first-order transitions: probability of the next positive item given earlier ones.

    Rows are transition counts with a Dirichlet prior of popularity (MacKay and Bauman Peto, Natural Language
    Engineering 1995). With decay 0 only the newest event counts; above 0 the rows of older events are mixed in, which
    is the mixture transition distribution (Raftery, JRSS B 1985) with geometric lag weights. Prior and decay are
    chosen on validation. seed: not used, nothing is random.
    """
    counts = np.zeros((training.items, training.items), dtype=np.float32)
    for history in training.histories:
        items = positives(history)
        np.add.at(counts, (items[:-1], items[1:]), 1)
    shares = _shares(training)
    leaving = counts.sum(1, keepdims=True)  # (N, 1)

    def candidates() -> Iterator[ItemToItem]:
        for prior in priors:
            weights = (counts + np.float32(prior) * shares) / (leaving + np.float32(prior))
            for decay in decays:
                yield ItemToItem(weights, shares, decay, chosen={"prior": prior, "decay": decay})

    return best_of(candidates(), training.validation)


def fit_item_knn(
    training: Training,
    *,
    seed: int,
    neighbours: Sequence[int] = NEIGHBOURS,
    shrinkages: Sequence[float] = SHRINKAGES,
    decays: Sequence[float] = DECAYS,
) -> ItemToItem:
    """Item-based nearest neighbours: shrunk cosine of who consumed what, k largest per item.

    Deshpande and Karypis, TOIS 2004; the shrinkage is Bell and Koren's, ICDM 2007. k, shrinkage and decay are chosen
    on validation. seed: not used, nothing is random.
    """
    together = _together(training)
    norms = np.sqrt(np.diag(together))
    shares = _shares(training)

    def candidates() -> Iterator[ItemToItem]:
        for shrinkage, k in itertools.product(shrinkages, neighbours):
            scale = np.maximum(norms[:, None] * norms + np.float32(shrinkage), 1)
            cosine = np.divide(together, scale, dtype=np.float32)
            np.fill_diagonal(cosine, 0)
            if k < training.items:
                smallest = np.partition(cosine, training.items - k, axis=1)[:, training.items - k, None]  # (N, 1)
                cosine[cosine < smallest] = 0
            for decay in decays:
                yield ItemToItem(
                    cosine, shares, decay, chosen={"neighbours": k, "shrinkage": shrinkage, "decay": decay}
                )

    return best_of(candidates(), training.validation)


def fit_ease(
    training: Training, *, seed: int, ridges: Sequence[float] = RIDGES, decays: Sequence[float] = DECAYS
) -> ItemToItem:
    """EASE (Steck, WWW 2019): ridge regression of each item on all others, in closed form.

    The ridge penalty lambda and decay are chosen on validation; decay 1 is the published model. Costs one N x N
    inverse in float64 per lambda. seed: not used, nothing is random.
    """
    together = _together(training).astype(np.float64)
    shares = _shares(training)

    def candidates() -> Iterator[ItemToItem]:
        for ridge in ridges:
            inverse = np.linalg.inv(together + ridge * np.eye(training.items))
            weights = (inverse / -np.diag(inverse)).astype(np.float32)
            np.fill_diagonal(weights, 0)
            for decay in decays:
                yield ItemToItem(weights, shares, decay, chosen={"ridge": ridge, "decay": decay})

    return best_of(candidates(), training.validation)


def _together(training: Training) -> NDArray[np.float32]:
    """Number of devices with both items among their positives, float32 (N, N)."""
    consumed = np.zeros((len(training.histories), training.items), dtype=np.float32)  # (U, N)
    for row, history in zip(consumed, training.histories, strict=True):
        row[positives(history)] = 1
    return consumed.T @ consumed


def _shares(training: Training) -> NDArray[np.float32]:
    """Share of each item in the positive training events, float32 (N,)."""
    counts = popularity_counts(training)
    return counts / np.maximum(counts.sum(), 1)
