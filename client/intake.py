"""From files a person has to their device: history into the store, catalogue beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from client.store import Role, Row, Store, known
from shared.artifacts import save_catalogue
from shared.datasets import load_data
from shared.datasets.attributes import read_attributes
from shared.datasets.splits import qualifying
from shared.errors import DataError


def import_history(data: Path, *, user: str | None, store: Path, catalogue: Path) -> int:
    """Fill an empty device from one user of a data folder (formats of docs/data.md); number of events.

    The newest event that could be a target is held out for the quality comparison and never trained on.
    Raises DataError for broken data, an unknown user, several users and none named, or a store that has events.
    """
    interactions = load_data(data)
    if user is None and len(interactions.users) > 1:
        raise DataError(
            f"{data}: found {len(interactions.users)} users; a device is one person's, name one with --user"
        )
    number = 0 if user is None else interactions.user_index(user)
    rows = interactions.of(number)
    targets = np.flatnonzero(qualifying(interactions)[rows])
    held_out = int(targets[-1]) if len(targets) > 1 else -1
    opened = Store(store)
    if opened.count():
        opened.close()
        raise DataError(f"{store}: found a device that has events already; join without --data to go on with it")
    items = interactions.catalogue.items
    events: list[Row] = []
    for seq, event in enumerate(range(rows.start, rows.stop)):
        role = Role.VALIDATE if seq == held_out else Role.TRAIN if held_out < 0 or seq < held_out else Role.HISTORY
        time, value = known(interactions.time[event]), known(interactions.value[event])
        item, kind = items[interactions.item[event]].id, int(interactions.kind[event])
        events.append((0, seq, item, time, kind, int(role), value))
    name = interactions.users[number]
    about = [(0, attribute, of[name]) for attribute, of in read_attributes(data).items() if name in of]
    save_catalogue(interactions.catalogue, catalogue)  # first: a store with events means that all is there
    opened.set_attributes(about)
    opened.replace(events)
    opened.close()
    return len(events)
