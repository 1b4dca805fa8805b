"""How well a ranking found what a person did next: per-user arrays first, means second.

A *rank* is the place of the target item, 1 for the first. Every figure is a function of ranks, so a model is
asked once per user and everything else is arithmetic:

    ranks    = [rank_of(scores, target, removed=seen) ...]           whole catalogue, seen items left out
    ranks_99 = [rank_among(scores, target, negatives) ...]           the target among 99 sampled negatives
    summary(ranks, ranks_99)                                         one number each
    paired_bootstrap(ndcg(ours, 10), ndcg(theirs, 10), ...)          is the difference more than luck?

Ties and NaN count against the target: a scorer that gives every item the same score, or none, puts it last.
Sampled negatives are a weaker protocol than the whole catalogue (Krichene and Rendle, KDD 2020) and are there
only to compare with papers that use them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import ConfigError, DataError

Floats = NDArray[np.float64]
Items = NDArray[np.integer]

#: Numbers held at once while resampling: 2^20 counts of 8 bytes.
_CHUNK = 2**20
#: Keeps the stream of negatives apart from other streams of the same seed.
_NEGATIVES_STREAM = 99


# --- ranks -------------------------------------------------------------------------------------------------


def rank_of(scores: NDArray[np.floating], target: int, *, removed: Items | Sequence[int] = ()) -> int:
    """Rank of the target in the whole catalogue with the removed (seen) items left out.

    scores: (N,), higher is better. removed: item indices, in any order, repeats allowed. An item that scores
    the same as the target, or NaN, stands before it. Raises DataError when the target is itself removed (it
    could never be found) or not an item at all, such as the -1 of a user without a target.

    >>> scores = np.array([0.9, 0.5, 0.5, 0.1, 0.7], dtype=np.float32)
    >>> rank_of(scores, 1, removed=[0])   # 4 is better, 2 ties
    3
    >>> rank_of(np.zeros(5, dtype=np.float32), 0, removed=[4])
    4
    """
    if not 0 <= target < len(scores):
        raise DataError(f"found target item {target}; expected 0 to {len(scores) - 1}. Skip users without a target")
    ahead = ~(scores < scores[target])  # (N,) the target itself included
    ahead[np.asarray(removed, dtype=np.int64)] = False
    if not ahead[target]:
        raise DataError(
            f"found target item {target} among the removed items; expected an item the user has not seen. "
            "Take targets from a split of `shared.datasets`"
        )
    return int(np.count_nonzero(ahead))


def rank_among(scores: NDArray[np.floating], target: int, candidates: Items) -> int:
    """Rank of the target among the candidates, which are distinct items; it may be one of them or not.

    scores: (N,) over the whole catalogue. Ties and NaN count against the target.

    >>> rank_among(np.array([0.9, 0.5, 0.5, 0.1]), 1, np.array([2, 3]))
    2
    """
    others = scores[candidates[candidates != target]]
    return 1 + int(np.count_nonzero(~(others < scores[target])))


def negatives_generator(seed: int, user: int) -> np.random.Generator:
    """The random stream of one user's negatives: the same for every model, whatever the order of users."""
    return np.random.default_rng((seed, user, _NEGATIVES_STREAM))


def draw_negatives(
    rng: np.random.Generator, *, count_items: int, training_items: Items, target: int, size: int = 99
) -> NDArray[np.int64]:
    """Distinct items (size,) the target is ranked among, drawn uniformly from the catalogue.

    | item                                     | can be drawn |
    |------------------------------------------|--------------|
    | in the user's training history           | no           |
    | the target                               | no           |
    | the user's other held-out items          | yes          |
    | everything else                          | yes          |
    | fewer than `size` of these               | all of them  |

    Held-out items must stay in. Leaving them out tells the evaluation (or, worse, training that shares this
    rule) which items are positive; that leak inflates much of what is published on federated recommenders.
    """
    allowed = np.ones(count_items, dtype=np.bool_)
    allowed[training_items] = False
    allowed[target] = False
    pool = np.flatnonzero(allowed)
    if len(pool) <= size:
        return pool
    return rng.choice(pool, size=size, replace=False)


# --- per-user figures --------------------------------------------------------------------------------------


def hit_rate(ranks: ArrayLike, k: int) -> Floats:
    """HR@k per user (U,): 1 when the target is among the first k, else 0.

    >>> hit_rate([1, 10, 11], 10).tolist()
    [1.0, 1.0, 0.0]
    """
    return (_checked(ranks) <= k).astype(np.float64)


def ndcg(ranks: ArrayLike, k: int) -> Floats:
    """NDCG@k per user (U,) with one relevant item: 1 / log2(1 + rank) within the first k, else 0.

    >>> ndcg([1, 3, 7, 11], 10).tolist()   # 1, 1/2, 1/3, 0
    [1.0, 0.5, 0.3333333333333333, 0.0]
    """
    places = _checked(ranks)
    return np.where(places <= k, 1.0 / np.log2(1.0 + places), 0.0)


def reciprocal_rank(ranks: ArrayLike) -> Floats:
    """1 / rank per user (U,), without a cut-off; its mean is MRR.

    >>> reciprocal_rank([1, 2, 4]).tolist()
    [1.0, 0.5, 0.25]
    """
    return 1.0 / _checked(ranks)


def summary(ranks: ArrayLike, ranks_99: ArrayLike) -> dict[str, float]:
    """Means over users of everything a run reports. Raises DataError without users.

    ranks: (U,) in the whole catalogue. ranks_99: (U,) among 99 negatives.

    >>> summary([1, 3, 20, 40], [1, 1, 3, 12])
    {'hr@10': 0.5, 'ndcg@10': 0.375, 'mrr': 0.3520833333333333, 'hr@10_99neg': 0.75, 'ndcg@10_99neg': 0.625}
    """
    columns = {
        "hr@10": hit_rate(ranks, 10),
        "ndcg@10": ndcg(ranks, 10),
        "mrr": reciprocal_rank(ranks),
        "hr@10_99neg": hit_rate(ranks_99, 10),
        "ndcg@10_99neg": ndcg(ranks_99, 10),
    }
    return {name: float(_per_user(values).mean()) for name, values in columns.items()}


def _checked(ranks: ArrayLike) -> Floats:
    places = np.asarray(ranks, dtype=np.float64)
    if not (places >= 1).all():
        raise DataError(f"found rank {places[~(places >= 1)].ravel()[0]:g}; expected ranks that count from 1")
    return places


# --- how sure ----------------------------------------------------------------------------------------------


def bootstrap_interval(values: ArrayLike, *, resamples: int, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean of per-user values (U,).

    Users are drawn with replacement, `resamples` times (Efron 1979). The order of users does not matter, and
    memory stays within a few arrays of 8 MiB. Raises DataError for no users or a value that is not finite,
    ConfigError for a level outside (0, 1) or fewer than one resample.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ConfigError(
            f"bootstrap: found level {level} and {resamples} resamples; expected 0 < level < 1 and at least 1"
        )
    means = np.concatenate(list(_resampled_means(_per_user(values), resamples=resamples, seed=seed)))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    ours: ArrayLike, theirs: ArrayLike, *, resamples: int, seed: int, level: float = 0.95
) -> dict[str, float]:
    """Mean of `ours - theirs` over the same users (U,) in the same order, and its bootstrap interval.

    Keys: difference, low, high. Pairing removes the spread between users, which is far larger than that
    between models. Raises DataError for arrays of different length, else as `bootstrap_interval`.
    """
    first, second = _per_user(ours), _per_user(theirs)
    if len(first) != len(second):
        raise DataError(f"found values of {len(first)} and {len(second)} users; expected the same users twice")
    low, high = bootstrap_interval(first - second, resamples=resamples, seed=seed, level=level)
    return {"difference": float((first - second).mean()), "low": low, "high": high}


def _resampled_means(values: Floats, *, resamples: int, seed: int) -> Iterator[Floats]:
    """Means of resamples, in chunks.

    A resample is how often each *distinct* value was drawn, which is multinomial. Rank metrics have a dozen
    distinct values however many users there are.
    """
    rng = np.random.default_rng(seed)
    distinct, counts = np.unique(values, return_counts=True)  # (D,), (D,)
    step = max(1, _CHUNK // len(distinct))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.multinomial(len(values), counts / len(values), size=size)  # (size, D)
        yield drawn @ distinct / len(values)


def _per_user(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        what = f"shape {array.shape}" if array.ndim != 1 or not len(array) else "a value that is not finite"
        raise DataError(f"per-user values: found {what}; expected one finite number for each of at least one user")
    return array
