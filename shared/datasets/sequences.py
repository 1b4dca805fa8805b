"""Histories as lines of ids, `user item item ...` in time order: the layout of sequential recommendation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shared.catalogue import Catalogue
from shared.datasets.files import read_lines
from shared.datasets.interactions import EventColumns, Interactions
from shared.errors import DataError
from shared.schema import EventKind


def read_sequences(path: Path, *, name: str, catalogue: Catalogue, kind: EventKind) -> Interactions:
    """One user per line, ids separated by spaces. Times are NaN: only the order is known.

    Raises DataError for an empty history, a user on two lines, or (counted) unknown item ids.
    """
    users: dict[str, int] = {}
    lengths: list[int] = []
    flat: list[str] = []
    for number, line in enumerate(read_lines(path), start=1):
        user, *history = line.split() or [""]
        if not history:
            found = f"user {user!r} with an empty history" if user else "a blank line"
            raise DataError.at(path, line=number, found=found, expected="a user id and at least one item id")
        if user in users:
            raise DataError.at(
                path, line=number, column=1, found=f"user {user!r} again", expected="one line for each user"
            )
        users[user] = number
        lengths.append(len(history))
        flat.extend(history)
    index = {item.id: position for position, item in enumerate(catalogue.items)}
    item = np.array([index.get(item_id, -1) for item_id in flat], dtype=np.int32)
    if (item < 0).any():
        raise _unknown(path, item=item, flat=flat, lengths=lengths, catalogue=catalogue)
    user_column = np.repeat(np.arange(len(users), dtype=np.int32), lengths)
    events = EventColumns.order_only(user_column, item=item, kind=kind)
    return Interactions.from_events(name, users=tuple(users), catalogue=catalogue, events=events)


def _unknown(path: Path, *, item: np.ndarray, flat: list[str], lengths: list[int], catalogue: Catalogue) -> DataError:
    """The first unknown id and how many there are."""
    unknown = np.flatnonzero(item < 0)
    first = int(unknown[0])
    ends = np.cumsum(lengths)
    line = int(np.searchsorted(ends, first, side="right"))
    return DataError.at(
        path,
        line=line + 1,
        column=first - int(ends[line]) + lengths[line] + 2,
        found=f"unknown item id {flat[first]!r}",
        expected=f"an id of the {len(catalogue)} listed items",
        remedy=f"In all {len(unknown)} events name {len({flat[i] for i in unknown})} unknown items",
    )
