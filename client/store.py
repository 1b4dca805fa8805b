"""The device's behaviour: one SQLite file that only this device reads.

A real device uses device number 0. A simulation keeps all its virtual devices as rows of one file, so ten
thousand devices are ten thousand keys and no models.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.catalogue import Catalogue
from shared.errors import DataError

_EVENTS = """
CREATE TABLE IF NOT EXISTS events (
    device INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    item TEXT NOT NULL,
    time REAL,
    kind INTEGER NOT NULL,
    role INTEGER NOT NULL,
    value REAL,
    PRIMARY KEY (device, seq)
) WITHOUT ROWID
"""
_ATTRIBUTES = """
CREATE TABLE IF NOT EXISTS attributes (
    device INTEGER NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (device, name)
) WITHOUT ROWID
"""

#: device, position, item id, seconds UTC or None, kind, role, rating or amount or None
Row = tuple[int, int, str, float | None, int, int, float | None]
#: device, what it knows about its person ("age"), and what that is ("25-34")
Attribute = tuple[int, str, str]


class Role(IntEnum):
    """What an event may be used for on its device. All roles are history once they have happened."""

    TRAIN = 0
    VALIDATE = 1
    HISTORY = 2


@dataclass(frozen=True)
class History:
    """One person's events, oldest first, and what the device knows about the person.

    items: int64 (n,) catalogue indices. times: float64 seconds, NaN unknown. kinds: int64 EventKind. roles:
    int64 Role. values: float64 ratings or amounts, NaN where there is none. attributes: name -> value.
    """

    items: NDArray[np.int64]
    times: NDArray[np.float64]
    kinds: NDArray[np.int64]
    roles: NDArray[np.int64]
    values: NDArray[np.float64]
    attributes: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: slice | NDArray[np.bool_]) -> History:
        items, times, kinds = self.items[rows], self.times[rows], self.kinds[rows]
        return History(items, times, kinds, self.roles[rows], self.values[rows], self.attributes)


def known(number: float) -> float | None:
    """A time or value as a row holds it: None for NaN."""
    return None if math.isnan(number) else float(number)


class Store:
    """Events by device. `path` may be ":memory:"."""

    def __init__(self, path: str | Path, *, durable: bool = True) -> None:
        try:
            self._db = sqlite3.connect(str(path), timeout=60, isolation_level=None)
            if str(path) != ":memory:":
                Path(path).chmod(0o600)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
            self._create()
        except (sqlite3.DatabaseError, OSError) as error:
            raise DataError(f"{path}: found no usable event store ({error}); expected an SQLite file") from None

    def _create(self) -> None:
        """Make the tables, and bring a file from before events had values up to date."""
        self._db.execute("BEGIN IMMEDIATE")  # or two processes might add the same column
        self._db.execute(_EVENTS)
        self._db.execute(_ATTRIBUTES)
        if "value" not in (row[1] for row in self._db.execute("PRAGMA table_info(events)")):
            self._db.execute("ALTER TABLE events ADD COLUMN value REAL")
        self._db.execute("COMMIT")

    def replace(self, rows: Iterable[Row]) -> None:
        """Put in all devices' events, all or nothing; what was there before is gone."""
        self._refill("events", rows, columns=7)

    def set_attributes(self, rows: Iterable[Attribute]) -> None:
        """Put in what all devices know about their people, all or nothing; what was there before is gone."""
        self._refill("attributes", rows, columns=3)

    def attributes(self) -> list[Attribute]:
        """What all devices know about their people. Never sent anywhere."""
        return self._db.execute("SELECT device, name, value FROM attributes").fetchall()

    def _refill(self, table: str, rows: Iterable[tuple[Any, ...]], *, columns: int) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.execute(f"DELETE FROM {table}")
            self._db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * columns)})", rows)
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def history(self, device: int, catalogue: Catalogue) -> History:
        """A device's events, oldest first. Events on items the catalogue no longer has are left out."""
        rows = self._db.execute(
            "SELECT item, time, kind, role, value FROM events WHERE device = ? ORDER BY seq", (device,)
        ).fetchall()
        kept = [row for row in rows if row[0] in catalogue]
        items, times, kinds, roles, values = zip(*kept, strict=True) if kept else ((), (), (), (), ())
        about = self._db.execute("SELECT name, value FROM attributes WHERE device = ?", (device,))
        return History(
            items=np.array([catalogue.index(item) for item in items], dtype=np.int64),
            times=np.array(times, dtype=np.float64),  # None becomes NaN
            kinds=np.array(kinds, dtype=np.int64),
            roles=np.array(roles, dtype=np.int64),
            values=np.array(values, dtype=np.float64),
            attributes=dict(about),
        )

    def count(self) -> int:
        """Number of events of all devices together. Never sent anywhere."""
        return int(self._db.execute("SELECT COUNT(*) FROM events").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()
