"""A person's own events as they happen: checked, written once, kept for as long as the person wants, and forgotten.

The file has the form of `client.store`, so a `Device` of number 0 reads and trains on it as on any other.

Roles. The newest event that could be a target (a positive one, on an item not seen before) is held out for the quality
comparison: VALIDATE. What came before it is TRAIN. What came after it is HISTORY, so that nothing trains on a future
that the comparison must not know. The next such event takes its place, and then all before it are TRAIN. The first one
alone is trained on. `client.intake` gives imported events the same roles.

Windows. Training windows are cut from the first kept training event on, every so many (`client.samples`), and a window
is what event-level privacy protects: its events must stay together, because an event that moved to another window
would have flowed into two. So a limit drops whole windows from the old end and never a part of one, which leaves every
other window as it was. An offset kept beside the events would do the same only for as long as nobody lost it, and
everything that cuts windows would have to know it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from threading import RLock
from typing import cast

import numpy as np
from numpy.typing import NDArray

from client.erasure import Forgotten, drop_windows, erase
from client.events import KnownEvent, NewEvent, unknown_item
from client.interests import MOST
from client.quarantine import set_aside_if_damaged
from client.store import History, Role, Row, Store
from shared.catalogue import Catalogue, clean_text
from shared.errors import ConfigError, DataError
from shared.schema import POSITIVE_KINDS, SEEN_KINDS

#: A request's key is remembered until so many events have been recorded after it.
REQUESTS_KEPT = 100_000
MAX_KEY_CHARS = 200

_DAY = 86_400.0
_PAGE = 10_000
_SEEN = f"kind IN ({', '.join(str(int(kind)) for kind in sorted(SEEN_KINDS))})"
_POSITIVE = f"kind IN ({', '.join(str(int(kind)) for kind in sorted(POSITIVE_KINDS))})"
_INDEXES = (
    f"CREATE INDEX IF NOT EXISTS events_seen ON events (device, item) WHERE {_SEEN}",
    f"CREATE INDEX IF NOT EXISTS events_held_out ON events (device, seq) WHERE role = {int(Role.VALIDATE)}",
    "CREATE INDEX IF NOT EXISTS requests_first ON requests (first)",
)
#: One look-up in the index for each item, however often it was seen.
_SEEN_ITEMS = f"""
WITH RECURSIVE seen (item) AS (
    SELECT min(item) FROM events WHERE device = 0 AND {_SEEN}
    UNION ALL
    SELECT (SELECT min(item) FROM events WHERE device = 0 AND {_SEEN} AND item > seen.item)
    FROM seen WHERE seen.item IS NOT NULL
)
SELECT item FROM seen WHERE item IS NOT NULL
"""
_HELD_OUT = f"""
SELECT seq FROM events INDEXED BY events_held_out WHERE device = 0 AND role = {int(Role.VALIDATE)}
ORDER BY seq DESC LIMIT 1
"""
_TARGET = f"""
SELECT 1 FROM events AS past WHERE device = 0 AND {_POSITIVE} AND NOT EXISTS (
    SELECT 1 FROM events WHERE device = 0 AND item = past.item AND seq < past.seq AND {_SEEN}
) LIMIT 1
"""


class Verdict(StrEnum):
    """What a person says about an item without having met it."""

    NOT_INTERESTED = "not-interested"


@dataclass(frozen=True, slots=True)
class Recorded:
    """Where events are: at `first` and the `count - 1` sequence numbers after it. new: False when they were known."""

    first: int
    count: int
    new: bool


class Journal:
    """The long-lived store of one person. `path` may be ":memory:".

    clock: seconds UTC. store: the reading side, for `Device`; several threads may use both.
    quarantined: where a damaged file was moved when this one was opened (`client.quarantine`), None when it was whole.
    The ledger is another file and is never touched.

    Raises DataError, here and where it writes, for a file that is locked, out of reach or of a newer version, and for a
    full disk; nothing is half written then.
    """

    def __init__(self, path: str | Path, catalogue: Catalogue, *, clock: Callable[[], float] = time.time) -> None:
        self.catalogue = catalogue
        self.quarantined = None if str(path) == ":memory:" else set_aside_if_damaged(Path(path))
        self.store = Store(path)
        self._path = str(path)
        self._clock = clock
        self._lock = RLock()
        self._cache: tuple[Catalogue, tuple[int, int], NDArray[np.bool_]] | None = None
        self.store.read("PRAGMA secure_delete = ON")
        with self._writing() as db:
            for statement in _INDEXES:
                db.execute(statement)

    def record(self, events: Sequence[NewEvent], *, key: str | None = None) -> Recorded:
        """Append events in the order given, all or none; they are on the disk when this returns.

        key: a name for this request. Sent again, under the same key, the same events are not recorded twice.

        | found | result |
        |---|---|
        | an event that is refused | the error of `NewEvent.checked` |
        | no events; a key that is empty, too long or not printable | DataError |
        | a known key with the same events | where they are; nothing written |
        | a known key with other events | DataError |
        """
        now, catalogue = self._clock(), self.catalogue
        if not events:
            raise DataError("found no events; expected at least one")
        if key is not None and not (0 < len(key) <= MAX_KEY_CHARS and key.isprintable()):
            raise DataError(
                f"found a request key of {len(key)} characters; expected 1 to {MAX_KEY_CHARS} printable ones"
            )
        checked = [event.checked(catalogue, now=now) for event in events]
        with self._lock:
            with self._writing() as db:
                digest = _digest(events, checked)
                if key is not None and (found := _known_request(db, key, digest)):
                    return found
                current = self._cached(catalogue)
                last = db.execute("SELECT max(seq) FROM events WHERE device = 0").fetchone()[0]
                first = 0 if last is None else last + 1
                for seq, event in enumerate(checked, start=first):
                    _append(db, seq, event)
                if key is not None:
                    db.execute("DELETE FROM requests WHERE first < ?", (first - REQUESTS_KEPT,))
                    db.execute("INSERT INTO requests VALUES (?, ?, ?, ?)", (key, first, len(checked), digest))
                changes = self.store.changes()  # before anyone else writes
            if current is not None:
                current[[catalogue.index(event.item) for event in checked if event.kind in SEEN_KINDS]] = True
                self._cache = (catalogue, changes, current)
        return Recorded(first, len(checked), new=True)

    def newest(self, count: int) -> History:
        """The last `count` events on items of the catalogue, oldest first; see `Store.newest`."""
        return self.store.newest(0, self.catalogue, count)

    def seen(self) -> NDArray[np.bool_]:
        """Which items a ranking leaves out: those consumed or skipped, bool (N,); the caller may change it.

        Kept in memory and updated with each event; read again after a write by anyone else.
        """
        with self._lock:
            catalogue = self.catalogue
            mask = self._cached(catalogue)
            if mask is None:
                changes = self.store.changes()
                names = [item for (item,) in self.store.read(_SEEN_ITEMS)]
                mask = np.zeros(len(catalogue), dtype=np.bool_)
                mask[[catalogue.index(item) for item in names if item in catalogue]] = True
                self._cache = (catalogue, changes, mask)
            return mask.copy()

    def shown(self) -> list[int]:
        """Catalogue indices of items that were ever shown, reading every event."""
        found = self.store.read("SELECT DISTINCT item FROM events WHERE device = 0 AND kind = 0")
        return [self.catalogue.index(item) for (item,) in found if item in self.catalogue]

    def rows(self) -> Iterator[Row]:
        """All events, oldest first, also those on items that the catalogue does not have."""
        after = -1
        query = "SELECT * FROM events WHERE device = 0 AND seq > ? ORDER BY seq LIMIT ?"
        while page := self.store.read(query, (after, _PAGE)):
            yield from cast("list[Row]", page)
            after = page[-1][1]

    def set_interest(self, tag: str, factor: float) -> None:
        """Keep what the person set for a tag: 0 mutes, up to `interests.MOST` boosts, 1 takes the edit back.

        Capitals do not matter. ConfigError for any other factor, or a tag without a readable character.
        """
        name = clean_text(tag, limit=60).casefold()
        if not name or not 0 <= factor <= MOST:
            raise ConfigError(f"found factor {factor} for tag {name!r}; expected a tag, and 0 (mute) to {MOST:g}")
        with self._writing() as db:
            db.execute("DELETE FROM interests WHERE tag = ?", (name,))
            if factor != 1:
                db.execute("INSERT INTO interests VALUES (?, ?)", (name, float(factor)))

    def interests(self) -> dict[str, float]:
        """Factor by tag (in small letters), as the person set them, in the order of tags."""
        return dict(self.store.read("SELECT tag, weight FROM interests ORDER BY tag"))

    def judge(self, item: str, verdict: Verdict = Verdict.NOT_INTERESTED, *, withdraw: bool = False) -> None:
        """Keep or withdraw a verdict on an item. CatalogueError for an unknown item, unless withdrawing."""
        if not withdraw and item not in self.catalogue:
            raise unknown_item(item, self.catalogue)
        with self._writing() as db:
            if withdraw:
                db.execute("DELETE FROM verdicts WHERE item = ? AND kind = ?", (item, verdict.value))
            else:
                db.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)", (item, verdict.value, self._clock()))

    def verdicts(self) -> list[tuple[str, Verdict, float]]:
        """Item id, verdict and when (seconds UTC), oldest first."""
        found = self.store.read("SELECT item, kind, time FROM verdicts ORDER BY time, item")
        return [(item, Verdict(kind), moment) for item, kind, moment in found]

    def retain(self, *, window: int, max_events: int = 0, max_days: int = 0) -> int:
        """Drop the oldest training windows over a limit, 0 for none; events gone. See `client.erasure.drop_windows`.

        window: events in a training window. Costs next to nothing while nothing is over a limit: call it after events.
        """
        age, now = max_days * _DAY, self._clock()
        try:
            return drop_windows(self.store, self.catalogue, window=window, max_events=max_events, max_age=age, now=now)
        except sqlite3.Error as error:
            raise self._unwritten(error) from None

    def forget(self) -> Forgotten:
        """Wipe events, attributes, interests, verdicts and request keys, and prove it; see `client.erasure.erase`."""
        return erase(self.store, self._path)

    def close(self) -> None:
        """Close the file."""
        self.store.close()

    def _cached(self, catalogue: Catalogue) -> NDArray[np.bool_] | None:
        """The mask in memory, if it is still true."""
        if self._cache and self._cache[0] is catalogue and self._cache[1] == self.store.changes():
            return self._cache[2]
        return None

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            with self.store.transaction() as db:
                yield db
        except sqlite3.Error as error:
            raise self._unwritten(error) from None

    def _unwritten(self, error: sqlite3.Error) -> DataError:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT:
            with suppress(sqlite3.Error):
                self.store.read("REINDEX")
            return DataError(
                f"{self._path}: found damage and wrote nothing ({error}); indexes were made anew, so ask again; if that"
                " does not help, start again, which moves a damaged file aside"
            )
        return DataError(f"{self._path}: nothing was written ({error}); free the file or the disk and ask again")


def _append(db: sqlite3.Connection, seq: int, event: KnownEvent) -> None:
    """Write one event; its role, and the roles of those it overtakes, as at the top of this file."""
    held_out = db.execute(_HELD_OUT).fetchone()
    role = Role.TRAIN if held_out is None else Role.HISTORY
    new = f"SELECT 1 FROM events WHERE device = 0 AND item = ? AND {_SEEN} LIMIT 1"
    if event.kind in POSITIVE_KINDS and not db.execute(new, (event.item,)).fetchone():
        if held_out is not None:
            overtaken = "UPDATE events SET role = ? WHERE device = 0 AND seq >= ?"
            db.execute(overtaken, (int(Role.TRAIN), held_out[0]))
        if held_out is not None or db.execute(_TARGET).fetchone():
            role = Role.VALIDATE
    row = (seq, event.item, event.time, int(event.kind), int(role), event.value)
    db.execute("INSERT INTO events VALUES (0, ?, ?, ?, ?, ?, ?)", row)


def _digest(events: Sequence[NewEvent], checked: Sequence[KnownEvent]) -> str:
    """What a request asked for, so that a repeat without times is the same request a second later."""
    asked = [
        (known.item, int(known.kind), event.time, known.value) for event, known in zip(events, checked, strict=True)
    ]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _known_request(db: sqlite3.Connection, key: str, digest: str) -> Recorded | None:
    found = db.execute("SELECT first, count, digest FROM requests WHERE key = ?", (key,)).fetchone()
    if found is None:
        return None
    if found[2] != digest:
        raise DataError(f"found request key {key!r} again with other events; expected a fresh key for each request")
    return Recorded(found[0], found[1], new=False)
