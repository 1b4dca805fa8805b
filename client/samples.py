"""From events to training windows and ranking histories.

Each training event lies in exactly one window: window w holds training events w*L to (w+1)*L - 1, counted
from the first. New events never move old ones to another window, which is what makes a window a unit of
privacy.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.store import History, Role
from shared.schema import POSITIVE_KINDS, SEEN_KINDS, EventKind
from shared.windows import (
    ATTRIBUTE_BUCKETS,
    GAP_BUCKETS,
    GAP_EDGES,
    HOUR_BUCKETS,
    IGNORE,
    VALUE_BUCKETS,
    VALUE_EDGES,
    Windows,
)

#: By event kind; a lookup, because membership tests cost more than the rest of a small device's round.
_POSITIVE = np.array([kind in POSITIVE_KINDS for kind in EventKind])
_SEEN = np.array([kind in SEEN_KINDS for kind in EventKind])


def training_windows(history: History, *, length: int) -> Windows:
    """All training windows of a device, (W, L); W is 0 when there is nothing to train on."""
    events = history[history.roles == Role.TRAIN]
    parts = [events[start : start + length] for start in range(0, len(events), length)]
    return stack_windows([part for part in parts if len(part)], length=length, with_targets=True)


def ranking_windows(histories: Sequence[History], *, length: int) -> Windows:
    """The newest `length` events of each history, one row each, without targets."""
    return stack_windows([history[-length:] for history in histories], length=length, with_targets=False)


def stack_windows(parts: Sequence[History], *, length: int, with_targets: bool) -> Windows:
    """Pad pieces of at most `length` events on the right into one batch."""
    import torch

    shape = (len(parts), length)
    arrays: dict[str, NDArray[Any]] = {
        "items": np.zeros(shape, dtype=np.int64),
        "kinds": np.zeros(shape, dtype=np.int64),
        "gaps": np.full(shape, GAP_BUCKETS - 1, dtype=np.int64),
        "values": np.full(shape, VALUE_BUCKETS - 1, dtype=np.int64),
        "hours": np.full(shape, HOUR_BUCKETS - 1, dtype=np.int64),
        "attributes": np.zeros((len(parts), ATTRIBUTE_BUCKETS), dtype=np.float32),
        "content": np.zeros(shape, dtype=np.bool_),
        "seen": np.zeros(shape, dtype=np.bool_),
        "targets": np.full(shape, IGNORE, dtype=np.int64),
        "real": np.zeros(shape, dtype=np.bool_),
    }
    for row, part in enumerate(parts):
        count = len(part)
        arrays["items"][row, :count] = part.items
        arrays["kinds"][row, :count] = part.kinds
        arrays["gaps"][row, :count] = gap_buckets(part.times)
        arrays["values"][row, :count] = value_buckets(part.values)
        arrays["hours"][row, :count] = hour_buckets(part.times)
        arrays["attributes"][row] = attribute_counts(part.attributes)
        arrays["content"][row, :count] = _POSITIVE[part.kinds]
        arrays["seen"][row, :count] = _SEEN[part.kinds]
        arrays["real"][row, :count] = True
        if with_targets:
            arrays["targets"][row, :count] = next_targets(part)
    return Windows(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def next_targets(part: History) -> NDArray[np.int64]:
    """For each event the next positive event's item within the piece, IGNORE if there is none; int64 (n,)."""
    targets = np.full(len(part), IGNORE, dtype=np.int64)
    upcoming = IGNORE
    positive = _POSITIVE[part.kinds]
    for position in range(len(part) - 1, -1, -1):
        targets[position] = upcoming
        if positive[position]:
            upcoming = int(part.items[position])
    return targets


def gap_buckets(times: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bucket of the time since the previous event, int64 (n,); the last is "unknown" (also the first)."""
    gaps = np.diff(times, prepend=np.nan)
    buckets = np.searchsorted(np.array(GAP_EDGES), gaps, side="left")
    return np.where(np.isnan(gaps), GAP_BUCKETS - 1, buckets).astype(np.int64)


def value_buckets(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bucket of each event's rating or amount, int64 (n,); the last is "no value"."""
    buckets = np.searchsorted(np.array(VALUE_EDGES), values, side="left")
    return np.where(np.isnan(values), VALUE_BUCKETS - 1, buckets).astype(np.int64)


def hour_buckets(times: NDArray[np.float64]) -> NDArray[np.int64]:
    """Hour of the day of each event in UTC, int64 (n,); the last bucket is "unknown"."""
    hours = np.nan_to_num(times) // 3_600 % 24
    return np.where(np.isnan(times), HOUR_BUCKETS - 1, hours).astype(np.int64)


def attribute_counts(attributes: Mapping[str, str]) -> NDArray[np.float32]:
    """How many of a person's attributes fall into each bucket, float32 (A,).

    Name and value are hashed together (Weinberger et al., ICML 2009), so that nobody needs a list of what people may
    say about themselves; two statements that share a bucket share an embedding.
    """
    counts = np.zeros(ATTRIBUTE_BUCKETS, dtype=np.float32)
    for name, value in attributes.items():
        counts[zlib.crc32(f"{name}={value}".encode()) % ATTRIBUTE_BUCKETS] += 1
    return counts


def seen_items(history: History) -> NDArray[np.int64]:
    """Catalogue indices a ranking leaves out: items consumed or skipped."""
    return np.unique(history.items[_SEEN[history.kinds]])
