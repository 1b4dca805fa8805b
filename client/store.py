"""The device's behaviour: one SQLite file that only this device reads.

A real device uses device number 0. A simulation keeps all its virtual devices as rows of one file, so ten
thousand devices are ten thousand keys and no models.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.catalogue import Catalogue
from shared.errors import DataError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    device INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    item TEXT NOT NULL,
    time REAL,
    kind INTEGER NOT NULL,
    role INTEGER NOT NULL,
    PRIMARY KEY (device, seq)
) WITHOUT ROWID
"""

#: device, position, item id, seconds UTC or None, kind, role
Row = tuple[int, int, str, float | None, int, int]


class Role(IntEnum):
    """What an event may be used for on its device. All roles are history once they have happened."""

    TRAIN = 0
    VALIDATE = 1
    HISTORY = 2


@dataclass(frozen=True)
class History:
    """One person's events, oldest first.

    items: int64 (n,) catalogue indices. times: float64 seconds, NaN unknown. kinds: int64 EventKind. roles:
    int64 Role.
    """

    items: NDArray[np.int64]
    times: NDArray[np.float64]
    kinds: NDArray[np.int64]
    roles: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: slice | NDArray[np.bool_]) -> History:
        return History(self.items[rows], self.times[rows], self.kinds[rows], self.roles[rows])


class Store:
    """Events by device. `path` may be ":memory:"."""

    def __init__(self, path: str | Path, *, durable: bool = True) -> None:
        try:
            self._db = sqlite3.connect(str(path), timeout=60, isolation_level=None)
            if str(path) != ":memory:":
                Path(path).chmod(0o600)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
            self._db.execute(_SCHEMA)
        except (sqlite3.DatabaseError, OSError) as error:
            raise DataError(f"{path}: found no usable event store ({error}); expected an SQLite file") from None

    def replace(self, rows: Iterable[Row]) -> None:
        """Put in all devices' events, all or nothing; what was there before is gone."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.execute("DELETE FROM events")
            self._db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", rows)
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def history(self, device: int, catalogue: Catalogue) -> History:
        """A device's events, oldest first. Events on items the catalogue no longer has are left out."""
        rows = self._db.execute(
            "SELECT item, time, kind, role FROM events WHERE device = ? ORDER BY seq", (device,)
        ).fetchall()
        known = [row for row in rows if row[0] in catalogue]
        items, times, kinds, roles = zip(*known, strict=True) if known else ((), (), (), ())
        return History(
            items=np.array([catalogue.index(item) for item in items], dtype=np.int64),
            times=np.array([np.nan if time is None else time for time in times], dtype=np.float64),
            kinds=np.array(kinds, dtype=np.int64),
            roles=np.array(roles, dtype=np.int64),
        )

    def count(self) -> int:
        """Number of events of all devices together. Never sent anywhere."""
        return int(self._db.execute("SELECT COUNT(*) FROM events").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()
