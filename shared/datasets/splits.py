"""Who is trained on what and asked what.

A *target* is an event whose item the model has to rank high, given everything the user did before it.
An event qualifies as a target when its kind is positive and this user had not seen its item before:
seen items are removed from a ranking and could never be found there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.datasets.columns import suggestion
from shared.datasets.interactions import Interactions
from shared.errors import ConfigError, DataError
from shared.schema import POSITIVE_KINDS, SEEN_KINDS

METHODS = ("leave-one-out", "temporal")
#: A user needs one event to train on, one validation target and one test target.
SHORTEST_HISTORY = 3


@dataclass(frozen=True, eq=False)
class Split:
    """Indices into the flat event arrays of `Interactions`, one per user: int64 (users,).

    train_end: training history of user u is offsets[u]:train_end[u].
    valid, test: the target event, -1 when the user has none. The history for a target is everything the user
    did before it: offsets[u]:valid[u], and offsets[u]:test[u] with the validation target included.
    cutoffs: seconds UTC where validation and test begin (temporal only), else None.
    """

    method: str
    train_end: NDArray[np.int64]
    valid: NDArray[np.int64]
    test: NDArray[np.int64]
    cutoffs: tuple[float, float] | None = None


def qualifying(interactions: Interactions) -> NDArray[np.bool_]:
    """Which events (n,) can be targets: of a positive kind, and the first by which the user saw the item."""
    seen = np.flatnonzero(np.isin(interactions.kind, [int(kind) for kind in SEEN_KINDS]))
    pair = interactions.user[seen].astype(np.int64) * len(interactions.catalogue) + interactions.item[seen]
    _, first = np.unique(pair, return_index=True)  # the earliest of each pair: events are in time order
    mask = np.zeros(len(interactions), dtype=np.bool_)
    mask[seen[first]] = True
    return mask & np.isin(interactions.kind, [int(kind) for kind in POSITIVE_KINDS])


def leave_one_out(interactions: Interactions) -> Split:
    """Each user's last qualifying event is the test target, the one before it the validation target.

    Training history is everything before the validation target. Users with fewer than 3 qualifying events get
    no targets, and all their events are training. Events after a test target are never used.
    """
    positions = np.flatnonzero(qualifying(interactions))
    ends = np.searchsorted(positions, interactions.offsets[1:])
    starts = np.searchsorted(positions, interactions.offsets[:-1])
    long_enough = ends - starts >= SHORTEST_HISTORY
    valid = np.full(len(interactions.users), -1, dtype=np.int64)
    test = valid.copy()
    valid[long_enough] = positions[ends[long_enough] - 2]
    test[long_enough] = positions[ends[long_enough] - 1]
    train_end = np.where(long_enough, valid, interactions.offsets[1:])
    return Split(method="leave-one-out", train_end=train_end, valid=valid, test=test)


def temporal(interactions: Interactions, *, quantiles: tuple[float, float] = (0.8, 0.9)) -> Split:
    """The same two moments for everybody: training before t1, validation in [t1, t2), test from t2 on.

    t1 and t2 are quantiles of all event times. A user's target is the first qualifying event of the period
    that has at least one event of the user before it. Raises DataError for data without times or with too
    few distinct ones, ConfigError for quantiles that do not rise inside (0, 1).
    """
    low, high = quantiles
    if not 0 < low < high < 1:
        raise ConfigError(f"split quantiles: found {low}, {high}; expected 0 < first < second < 1")
    if not interactions.has_times:
        raise DataError(
            f"{interactions.name}: found events without timestamps; expected times for a temporal split. "
            "Use the leave-one-out split, which needs only their order"
        )
    t1, t2 = (float(cut) for cut in np.quantile(interactions.time, quantiles))
    if t1 == t2:
        raise DataError(
            f"{interactions.name}: found the same time at quantiles {low} and {high}; "
            "expected times that differ. Use the leave-one-out split"
        )
    targets = qualifying(interactions)
    targets[interactions.offsets[:-1]] = False
    return Split(
        method="temporal",
        train_end=interactions.offsets[:-1] + _count_by_user(interactions, interactions.time < t1),
        valid=_first_by_user(interactions, targets & (interactions.time >= t1) & (interactions.time < t2)),
        test=_first_by_user(interactions, targets & (interactions.time >= t2)),
        cutoffs=(t1, t2),
    )


def make_split(interactions: Interactions, method: str) -> Split:
    """The split of that name: `leave-one-out` or `temporal`. ConfigError for any other."""
    if method == "leave-one-out":
        return leave_one_out(interactions)
    if method == "temporal":
        return temporal(interactions)
    hint = suggestion(method, METHODS)
    raise ConfigError(f"split: found {method!r}; expected one of {', '.join(METHODS)}. {hint}".rstrip())


def _count_by_user(interactions: Interactions, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.bincount(interactions.user[mask], minlength=len(interactions.users)).astype(np.int64)


def _first_by_user(interactions: Interactions, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The first marked event of each user (users,), -1 for none."""
    positions = np.flatnonzero(mask)
    first = np.full(len(interactions.users), -1, dtype=np.int64)
    users, where = np.unique(interactions.user[positions], return_index=True)
    first[users] = positions[where]
    return first
