"""One event on its way in: what an app may report, and what is said about anything else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice

from shared.catalogue import Catalogue
from shared.datasets.columns import LATEST_SECONDS, suggestion
from shared.errors import CatalogueError, DataError
from shared.schema import EventKind

#: Seconds by which the clock of whoever reports an event may be ahead of this one's.
CLOCK_SKEW = 300.0

#: Ids that are compared with an unknown one; comparing with a whole catalogue would take seconds.
_COMPARED = 2_000
_SHOWN_CHARS = 60
_KINDS = {kind.label: kind for kind in EventKind}


@dataclass(frozen=True, slots=True)
class NewEvent:
    """One thing the person did. time: seconds UTC, None for now. value: a rating or amount. kind: may be a label."""

    item: str
    kind: EventKind | str = EventKind.CLICK
    time: float | None = None
    value: float | None = None

    def checked(self, catalogue: Catalogue, *, now: float) -> KnownEvent:
        """The event with its kind looked up and its time filled in.

        | found | result |
        |---|---|
        | an item that the catalogue does not have | CatalogueError that names ids close to it |
        | a kind that does not exist | DataError that names the closest |
        | a time before 1970, more than `CLOCK_SKEW` ahead of `now`, or no number | DataError |
        | a value that is not a finite number | DataError |
        """
        if self.item not in catalogue:
            raise unknown_item(self.item, catalogue)
        kind = self.kind if isinstance(self.kind, EventKind) else _KINDS.get(self.kind)
        if kind is None:
            shown = str(self.kind)[:_SHOWN_CHARS]
            hint = suggestion(shown, list(_KINDS))
            raise DataError(f"kind: found {shown!r}; expected one of {', '.join(_KINDS)}. {hint}".rstrip())
        moment = now if self.time is None else float(self.time)
        if not 0 <= moment <= now + CLOCK_SKEW:
            ahead = "This looks like milliseconds: divide by 1000" if moment >= LATEST_SECONDS else "Check the clock"
            raise DataError(
                f"time: found {moment}; expected seconds UTC since 1970 and at most {CLOCK_SKEW:.0f} more than now"
                f" ({now:.0f}). {ahead}"
            )
        if self.value is not None and not math.isfinite(self.value):
            raise DataError(f"value: found {self.value}; expected a finite number or none")
        return KnownEvent(self.item, moment, kind, None if self.value is None else float(self.value))


@dataclass(frozen=True, slots=True)
class KnownEvent:
    """An event that may be stored. time: seconds UTC."""

    item: str
    time: float
    kind: EventKind
    value: float | None


def unknown_item(item: str, catalogue: Catalogue) -> CatalogueError:
    """The error for an id that the catalogue does not have; it names ids of about its length that look like it."""
    shown = item if len(item) <= _SHOWN_CHARS else f"{item[:_SHOWN_CHARS]}..."
    near: list[str] = []
    if item and shown == item:
        lengths = range(len(item) - 2, len(item) + 3)
        ends = {item[0].lower(), item[0].upper()}, item[-1]
        alike = (
            known.id
            for known in catalogue.items
            if known.id and len(known.id) in lengths and (known.id[0] in ends[0] or known.id[-1] == ends[1])
        )
        near = get_close_matches(item, list(islice(alike, _COMPARED)), n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"the first is {catalogue.items[0].id!r}"
    return CatalogueError(f"item: found the unknown id {shown!r}; expected one of {len(catalogue)} items; {hint}")
