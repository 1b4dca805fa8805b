"""The device's behaviour: one SQLite file that only this device reads.

A real device uses device number 0. A simulation keeps all its virtual devices as rows of one file, so ten
thousand devices are ten thousand keys and no models. Both have one form; `client.journal` writes a person's own.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from pathlib import Path
from threading import RLock
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
#: What a person's own file holds besides; empty in a simulation.
_PERSONAL = (
    "CREATE TABLE interests (tag TEXT PRIMARY KEY, weight REAL NOT NULL) WITHOUT ROWID",
    "CREATE TABLE verdicts (item TEXT, kind TEXT, time REAL NOT NULL, PRIMARY KEY (item, kind)) WITHOUT ROWID",
    "CREATE TABLE requests (key TEXT PRIMARY KEY, first INTEGER NOT NULL, count INTEGER NOT NULL, digest TEXT NOT NULL)"
    " WITHOUT ROWID",
)
#: Every table that holds something about a person.
TABLES = ("events", "attributes", "interests", "verdicts", "requests")

_COLUMNS = "item, time, kind, role, value"

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
    """Events by device. `path` may be ":memory:".

    durable: wait for the disk on every write (a person's device); a simulation goes without.
    One store may be used by several threads; they wait for each other. Whoever reads for long opens another one.
    Raises DataError for a file that is no event store, is damaged, or is of a newer form than this version reads.
    """

    def __init__(self, path: str | Path, *, durable: bool = True) -> None:
        self._lock = RLock()
        try:
            self._db = sqlite3.connect(str(path), timeout=60, isolation_level=None, check_same_thread=False)
            self._db.text_factory = text_of
            if str(path) != ":memory:":
                Path(path).chmod(0o600)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
            self._migrate(str(path))
        except (sqlite3.DatabaseError, OSError) as error:
            raise DataError(f"{path}: found no usable event store ({error}); expected an SQLite file") from None

    def _migrate(self, path: str) -> None:
        """Bring a new file, or one of an earlier version, to this version's form: all or nothing."""
        if self._version() == VERSION:
            return
        with self.transaction() as db:  # or two processes might take the same step
            found = self._version()
            if found > VERSION:
                raise DataError(
                    f"{path}: found event store version {found}; expected {VERSION} or older; update homerank"
                )
            for step in _MIGRATIONS[found:]:
                step(db)
            db.execute(f"PRAGMA user_version = {VERSION}")

    def _version(self) -> int:
        return int(self.read("PRAGMA user_version")[0][0])

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection, for writing all or nothing; nobody else writes meanwhile."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def read(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows that one statement returns."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def changes(self) -> tuple[int, int]:
        """A value that is another one after every write to the file, by this store or by anyone else."""
        with self._lock:
            return self.read("PRAGMA data_version")[0][0], self._db.total_changes

    def replace(self, rows: Iterable[Row]) -> None:
        """Put in all devices' events, all or nothing; what was there before is gone."""
        self._refill("events", rows, columns=7)

    def set_attributes(self, rows: Iterable[Attribute]) -> None:
        """Put in what all devices know about their people, all or nothing; what was there before is gone."""
        self._refill("attributes", rows, columns=3)

    def attributes(self) -> list[Attribute]:
        """What all devices know about their people. Never sent anywhere."""
        return self.read("SELECT device, name, value FROM attributes")

    def _refill(self, table: str, rows: Iterable[tuple[Any, ...]], *, columns: int) -> None:
        with self.transaction() as db:
            db.execute(f"DELETE FROM {table}")
            db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * columns)})", rows)

    def history(self, device: int, catalogue: Catalogue) -> History:
        """A device's events, oldest first. Events on items the catalogue no longer has are left out."""
        rows = self.read(f"SELECT {_COLUMNS} FROM events WHERE device = ? ORDER BY seq", (device,))
        return self._history(device, [row for row in rows if row[0] in catalogue], catalogue)

    def newest(self, device: int, catalogue: Catalogue, count: int) -> History:
        """The last `count` events of `history`, oldest first, in time proportional to `count`.

        Only events on items that the catalogue no longer has, where they lie between the newest, take time besides.
        """
        query = f"SELECT {_COLUMNS} FROM events WHERE device = ? ORDER BY seq DESC"
        with self._lock:
            found = self._db.execute(query, (device,))
            rows = list(islice((row for row in found if row[0] in catalogue), count))
            found.close()
        return self._history(device, rows[::-1], catalogue)

    def _history(self, device: int, rows: Sequence[tuple[Any, ...]], catalogue: Catalogue) -> History:
        items, times, kinds, roles, values = zip(*rows, strict=True) if rows else ((), (), (), (), ())
        about = self.read("SELECT name, value FROM attributes WHERE device = ?", (device,))
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
        return int(self.read("SELECT COUNT(*) FROM events")[0][0])

    def content(self) -> bytes:
        """The database as the bytes of a file, which a ":memory:" store has not."""
        with self._lock:
            return self._db.serialize()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()


def text_of(raw: bytes) -> str:
    """Text as SQLite holds it. A damaged row must not keep anybody from the rows around it."""
    return raw.decode("utf-8", "replace")


def _first_version(db: sqlite3.Connection) -> None:
    """From an empty file, or one from before events had values, people attributes, or files a version."""
    db.execute(_EVENTS)
    db.execute(_ATTRIBUTES)
    if "value" not in (row[1] for row in db.execute("PRAGMA table_info(events)")):
        db.execute("ALTER TABLE events ADD COLUMN value REAL")
    for statement in _PERSONAL:
        db.execute(statement)


#: Step n brings a file of version n to n + 1; SQLite's `user_version` counts them.
_MIGRATIONS = (_first_version,)
#: The version of files as this program writes them.
VERSION = len(_MIGRATIONS)
