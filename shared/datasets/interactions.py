"""Who did what, when: the one shape every loader returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from shared.catalogue import Catalogue
from shared.errors import DataError
from shared.schema import EventKind


@dataclass(frozen=True, eq=False)
class EventColumns:
    """Events in file order, before sorting. All arrays have shape (n,).

    user, item: int32 indices. time: float64 seconds UTC, all NaN when the source has only an order.
    kind: uint8 of EventKind. value: float32, NaN where there is none.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    time: NDArray[np.float64]
    kind: NDArray[np.uint8]
    value: NDArray[np.float32]

    @classmethod
    def order_only(cls, user: NDArray[np.int32], *, item: NDArray[np.int32], kind: EventKind) -> EventColumns:
        """Events of one kind that have an order and nothing else."""
        n = len(user)
        return cls(
            user=user,
            item=item,
            time=np.full(n, np.nan),
            kind=np.full(n, kind, dtype=np.uint8),
            value=np.full(n, np.nan, dtype=np.float32),
        )

    def take(self, rows: NDArray[np.int64]) -> EventColumns:
        """The given rows, in the given order."""
        return EventColumns(self.user[rows], self.item[rows], self.time[rows], self.kind[rows], self.value[rows])


@dataclass(frozen=True, eq=False)
class Interactions:
    """All events of all users, sorted by (user, time), stably: events with the same time keep file order.

    Event arrays have shape (n,) and the types of `EventColumns`; user and item index `users` and `catalogue`.
    offsets: int64 (users + 1,), the events of user u are offsets[u]:offsets[u + 1].
    Treat the arrays as read-only.

    Build it with `from_events`; the plain constructor trusts its arguments.
    """

    name: str
    users: tuple[str, ...]
    catalogue: Catalogue
    user: NDArray[np.int32]
    item: NDArray[np.int32]
    time: NDArray[np.float64]
    kind: NDArray[np.uint8]
    value: NDArray[np.float32]
    offsets: NDArray[np.int64]

    @classmethod
    def from_events(
        cls, name: str, *, users: Sequence[str], catalogue: Catalogue, events: EventColumns
    ) -> Interactions:
        """Sort events into histories.

        Raises DataError for no events, columns of unequal length, an index out of range, a user without
        events, or times given for some events only.
        """
        _check(name, users, catalogue, events)
        order = np.argsort(events.user, kind="stable")
        if not np.isnan(events.time[0]):
            order = np.lexsort((events.time, events.user))  # lexsort is stable
        columns = events.take(order)
        counts = np.bincount(columns.user, minlength=len(users))
        if not counts.all():
            lonely = users[int(np.argmin(counts))]
            raise DataError(f"{name}: found user {lonely!r} without events; expected at least one for each user")
        return cls(
            name=name,
            users=tuple(users),
            catalogue=catalogue,
            user=columns.user.astype(np.int32, copy=False),
            item=columns.item.astype(np.int32, copy=False),
            time=columns.time.astype(np.float64, copy=False),
            kind=columns.kind.astype(np.uint8, copy=False),
            value=columns.value.astype(np.float32, copy=False),
            offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        )

    def __len__(self) -> int:
        return len(self.item)

    @property
    def has_times(self) -> bool:
        """Whether events carry timestamps; if not, their order is all there is."""
        return not bool(np.isnan(self.time[0]))

    def of(self, user_index: int) -> slice:
        """Where the events of a user lie in the flat arrays, oldest first."""
        return slice(int(self.offsets[user_index]), int(self.offsets[user_index + 1]))

    def user_index(self, user_id: str) -> int:
        """Position of a user id; DataError with a suggestion when there is none."""
        try:
            return self.users.index(user_id)
        except ValueError:
            near = get_close_matches(user_id, self.users, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; the first one is {self.users[0]!r}"
            raise DataError(
                f"{self.name}: found user {user_id!r}; expected one of its {len(self.users)} users{hint}"
            ) from None

    def with_min_item_count(self, count: int) -> Interactions:
        """Drop items with fewer than `count` events (of any kind), then users left without events.

        One pass, not repeated: the other items' counts are those of the whole data set. 0 keeps everything.
        Raises DataError when nothing is left or `count` is negative.
        """
        if count < 0:
            raise DataError(f"min_item_count: found {count}; expected 0 or more")
        if count == 0:
            return self
        kept_items = np.flatnonzero(np.bincount(self.item, minlength=len(self.catalogue)) >= count)
        if not len(kept_items):
            raise DataError(f"{self.name}: found no item with {count} events or more; lower min_item_count")
        return self._with_items(kept_items)

    def with_domains(self, domains: Sequence[str]) -> Interactions:
        """Drop items of other domains than these, then users left without events; no domain keeps everything.

        Raises DataError for a domain that no item is of, and when nobody has touched an item of these.
        """
        if not domains:
            return self
        of = np.array([item.domain for item in self.catalogue.items])
        known = sorted(set(of.tolist()) - {""})
        for domain in domains:
            if domain not in known:
                raise DataError(
                    f"{self.name}: found no item of domain {domain!r}; expected one of"
                    f" {', '.join(known) or 'none, as its items name no domain'}. Change data.domains"
                )
        kept_items = np.flatnonzero(np.isin(of, domains))
        if not np.isin(self.item, kept_items).any():
            raise DataError(f"{self.name}: found no event on items of {', '.join(domains)}; add a domain")
        return self._with_items(kept_items)

    def _with_items(self, kept_items: NDArray[np.int64]) -> Interactions:
        """The same with these items alone, of which at least one has an event. Users without events are dropped."""
        rows = np.flatnonzero(np.isin(self.item, kept_items))
        kept_users, user = np.unique(self.user[rows], return_inverse=True)
        events = EventColumns(
            user=user.astype(np.int32),
            item=np.searchsorted(kept_items, self.item[rows]).astype(np.int32),
            time=self.time[rows],
            kind=self.kind[rows],
            value=self.value[rows],
        )
        return Interactions.from_events(
            self.name,
            users=[self.users[index] for index in kept_users],
            catalogue=self.catalogue.subset(kept_items.tolist()),
            events=events,
        )


def _check(name: str, users: Sequence[str], catalogue: Catalogue, events: EventColumns) -> None:
    """Refuse columns that cannot be histories."""
    lengths = {len(c) for c in (events.user, events.item, events.time, events.kind, events.value)}
    if len(lengths) != 1:
        raise DataError(f"{name}: found columns of lengths {sorted(lengths)}; expected one length")
    if lengths == {0}:
        raise DataError(f"{name}: found no events; expected at least one")
    for label, column, size in (("user", events.user, len(users)), ("item", events.item, len(catalogue))):
        if column.min() < 0 or column.max() >= size:
            raise DataError(f"{name}: found a {label} index outside 0..{size - 1}; expected all inside")
    missing = np.isnan(events.time)
    if missing.any() and not missing.all():
        raise DataError(f"{name}: found times for some events only; expected times for all or for none")
