"""What a data set looks like before anyone trains on it. Bad sources never get here: loading refuses them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from shared.datasets.interactions import Interactions
from shared.datasets.splits import SHORTEST_HISTORY, qualifying
from shared.schema import EventKind

QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p90": 0.9, "max": 1.0}


@dataclass(frozen=True)
class DataReport:
    """Counts over one data set; plain values, so that `dataclasses.asdict` is JSON.

    kinds: events by kind label, kinds that occur only.
    first, last: ISO 8601 UTC, None when the source has only an order.
    users_with_ties: users with two events at one time.
    users_tied_at_end: those whose last two events tie, so that file order decides what the test item is.
    duplicate_pairs: (user, item) pairs with more than one event.
    short_histories: users with fewer than 3 events that can be targets, so with none when leaving one out.
    """

    name: str
    users: int
    items: int
    events: int
    kinds: dict[str, int]
    first: str | None
    last: str | None
    users_with_ties: int
    users_tied_at_end: int
    duplicate_pairs: int
    items_without_events: int
    short_histories: int
    events_per_user: dict[str, float]


def inspect(interactions: Interactions) -> DataReport:
    """Count what `homerank-simulate data check` reports."""
    users = len(interactions.users)
    per_item = np.bincount(interactions.item, minlength=len(interactions.catalogue))
    per_kind = np.bincount(interactions.kind, minlength=len(EventKind))
    per_user = np.diff(interactions.offsets)
    targets = np.bincount(interactions.user[qualifying(interactions)], minlength=users)
    # NaN never equals NaN, so sources without times have no ties
    tied = (np.diff(interactions.time) == 0) & (np.diff(interactions.user) == 0)
    last_pair = interactions.offsets[1:] - 2
    has_pair = per_user >= 2
    pairs = interactions.user.astype(np.int64) * len(interactions.catalogue) + interactions.item
    _, pair_counts = np.unique(pairs, return_counts=True)
    return DataReport(
        name=interactions.name,
        users=users,
        items=len(interactions.catalogue),
        events=len(interactions),
        kinds={kind.label: int(per_kind[kind]) for kind in EventKind if per_kind[kind]},
        first=_iso(float(interactions.time.min())) if interactions.has_times else None,
        last=_iso(float(interactions.time.max())) if interactions.has_times else None,
        users_with_ties=len(np.unique(interactions.user[1:][tied])),
        users_tied_at_end=int(tied[last_pair[has_pair]].sum()),
        duplicate_pairs=int((pair_counts > 1).sum()),
        items_without_events=int((per_item == 0).sum()),
        short_histories=int((targets < SHORTEST_HISTORY).sum()),
        events_per_user={label: float(np.quantile(per_user, q)) for label, q in QUANTILES.items()},
    )


def _iso(seconds: float) -> str:
    """UTC, to the second."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(seconds))
    return moment.isoformat().replace("+00:00", "Z")
