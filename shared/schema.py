"""The nouns both sides use: events, items, training windows, recommendations."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum


class EventKind(IntEnum):
    """What happened between a person and an item. The number is stored; the lower-case name is the file format."""

    IMPRESSION = 0
    CLICK = 1
    LIKE = 2
    PURCHASE = 3
    SKIP = 4
    RATING = 5

    @property
    def label(self) -> str:
        """The name used in files."""
        return self.name.lower()


#: Kinds that say a person wanted the item. Only these are prediction targets.
POSITIVE_KINDS = frozenset({EventKind.CLICK, EventKind.LIKE, EventKind.PURCHASE, EventKind.RATING})

#: Kinds after which an item counts as seen and is no longer recommended (a mere impression does not).
SEEN_KINDS = POSITIVE_KINDS | {EventKind.SKIP}


@dataclass(frozen=True, slots=True)
class Event:
    """One thing a person did.

    item: catalogue index. time: seconds UTC, NaN when the source has only an order.
    value: a rating or amount, NaN when there is none.
    """

    item: int
    time: float
    kind: EventKind
    value: float = float("nan")


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that can be recommended. `text` is what the backbone reads; `title` is what people read.

    creator: who made it, empty where that is not known.
    """

    id: str
    title: str
    text: str
    tags: tuple[str, ...] = ()
    domain: str = ""
    creator: str = ""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One ranked item. `parts` is the exact additive split of `score`."""

    rank: int
    item_id: str
    title: str
    score: float
    parts: dict[str, float] = field(default_factory=dict)
