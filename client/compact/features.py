"""What the student reads of a history: recency-weighted means of what is known of each event.

    phi(u) = [1, for each half-life h: mean over positive events of [token | alone], mean over the others of token,
              mean of each source's one-hot bucket; counts of attributes]

token: what the trunk reads of an item; alone: the adapter's state after a history of that item alone. Both are tables
made at export. The mean at half-life h weighs an event by 0.5^(age / h), divided by what all events weigh; near 0 it is
the last event. Events that are not positive are kept apart where the trunk can tell them apart, by their kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.compact.context import BUCKETS, context_buckets
from client.compact.integers import Rows
from client.samples import attribute_counts
from client.store import History
from shared.schema import POSITIVE_KINDS, EventKind
from shared.windows import ATTRIBUTE_BUCKETS

POSITIVE = np.array([kind in POSITIVE_KINDS for kind in EventKind])


@dataclass(frozen=True)
class StudentLayout:
    """half_lives: in events. token, alone: widths of an item's row. sources: of context, by event.

    attributes: whether what the device knows about its person is read.
    """

    half_lives: tuple[float, ...]
    token: int
    alone: int
    sources: tuple[str, ...] = ()
    attributes: bool = False

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> StudentLayout:
        """What `to_dict` gave."""
        return cls(
            half_lives=tuple(float(value) for value in values["half_lives"]),
            token=int(values["token"]),
            alone=int(values["alone"]),
            sources=tuple(values["sources"]),
            attributes=bool(values["attributes"]),
        )

    def to_dict(self) -> dict[str, object]:
        """For a manifest."""
        return asdict(self)

    @property
    def groups(self) -> tuple[tuple[NDArray[np.bool_], int], ...]:
        """Which kinds of events make up a mean of rows, bool (kinds,), and how many columns of the rows it takes."""
        if "kind" not in self.sources:
            return ((np.ones_like(POSITIVE), self.token + self.alone),)
        return ((POSITIVE, self.token + self.alone), (~POSITIVE, self.token))

    @property
    def size(self) -> int:
        """Entries of phi(u), the constant first."""
        each = sum(width for _, width in self.groups) + sum(BUCKETS[name] for name in self.sources)
        return 1 + each * len(self.half_lives) + self.attributes * ATTRIBUTE_BUCKETS


def student_features(history: History, rows: Rows, layout: StudentLayout) -> NDArray[np.float32]:
    """phi after the last of a history's events, float32 (G,). rows: [token | alone] of each item."""
    age = np.arange(len(history) - 1, -1, -1)
    decay = 0.5 ** (age / np.array(layout.half_lives)[:, None])  # (H, n)
    weights = (decay / decay.sum(axis=1, keepdims=True)).astype(np.float32)
    items = rows[history.items]  # (n, token + alone)
    parts = [np.ones(1, dtype=np.float32)]
    for kinds, width in layout.groups:
        parts.append(((weights * kinds[history.kinds]) @ items[:, :width]).ravel())
    for name, buckets in context_buckets(history, layout.sources).items():
        parts.append((weights @ np.eye(BUCKETS[name], dtype=np.float32)[buckets]).ravel())
    if layout.attributes:
        parts.append(attribute_counts(history.attributes))
    return np.concatenate(parts)
