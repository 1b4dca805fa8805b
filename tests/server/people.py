"""People to write a data folder for each: real ones of MovieLens 100K, or made up where that is not at hand."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from shared.datasets import Interactions, load_data
from tests.conftest import data_folder
from tests.server.test_end_to_end import NAMES, write_person

#: What each of these rated last, the other two rated before: with three people, something is there to be learned.
ALIKE = ("353", "418", "808")
MADE_UP = ((NAMES[0], [*range(0, 10), 10]), (NAMES[1], [*range(8, 18), 5]), ("cleo-the-third", [*range(4, 14), 3]))


@dataclass(frozen=True)
class Someone:
    """One person's data folder, with the items of everybody, and the ids of what the person has seen."""

    folder: Path
    seen: frozenset[str]


def three_people(place: Path) -> tuple[list[Someone], str]:
    """Three people, each in a folder under `place`, and whose histories they are, in words."""
    source = data_folder("ml-100k")
    if source.is_dir():
        data = load_data(source)
        people = [_real(data, user, place / f"person {user}") for user in ALIKE]
        return people, f"three people of MovieLens 100K, {len(data.catalogue):,} items"
    people = [
        Someone(write_person(place / name, name, items), frozenset(f"i{item}" for item in items))
        for name, items in MADE_UP
    ]
    return people, f"found no MovieLens 100K at {source} (set HOMERANK_DATA): three people who are made up"


def _real(data: Interactions, user: str, folder: Path) -> Someone:
    """The ratings of one user as events.csv, and the whole catalogue as items.csv."""
    folder.mkdir()
    items, rows = data.catalogue.items, data.of(data.user_index(user))
    events = [
        [user, items[data.item[row]].id, f"{data.time[row]:.0f}", "rating", f"{data.value[row]:g}"]
        for row in range(rows.start, rows.stop)
    ]
    for name, header, lines in (
        ("events", ["user", "item", "timestamp", "kind", "value"], events),
        ("items", ["item", "title", "genres"], [[item.id, item.title, "|".join(item.tags)] for item in items]),
    ):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *lines])
    written = load_data(folder)
    assert written.catalogue.texts == data.catalogue.texts
    assert written.item.tolist() == data.item[rows].tolist()
    return Someone(folder, frozenset(line[1] for line in events))
