"""What a history says about each event beside its item, by the buckets of `client.samples`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from client.samples import gap_buckets, hour_buckets, value_buckets
from client.store import History
from shared.schema import EventKind
from shared.windows import GAP_BUCKETS, HOUR_BUCKETS, VALUE_BUCKETS

#: Buckets of each source that says something about a single event.
BUCKETS = {"kind": len(EventKind), "gap": GAP_BUCKETS, "value": VALUE_BUCKETS, "hour": HOUR_BUCKETS}


def context_buckets(history: History, sources: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Bucket of each event by source, int64 (n,) each."""
    readers: dict[str, Callable[[History], NDArray[np.int64]]] = {
        "kind": lambda one: one.kinds,
        "gap": lambda one: gap_buckets(one.times),
        "value": lambda one: value_buckets(one.values),
        "hour": lambda one: hour_buckets(one.times),
    }
    return {name: readers[name](history) for name in sources}
