"""Taking events away: the oldest ones when there are too many, and all of them when the person says so.

What can be erased is what this program wrote: the bytes of the files. A file system that keeps old versions, a backup,
and a flash drive that has not yet reused its blocks are beyond it.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from client.quarantine import COMPANIONS
from client.store import TABLES, Role, Store
from shared.catalogue import Catalogue
from shared.errors import DataError

#: Item ids, newest first, that are searched for after forgetting; with all other words a person left.
SEARCHED = 2_000
#: Events dropped at once, so that nobody waits for long.
_STEP = 5_000
#: Shorter words occur by chance in any file.
SHORTEST_WORD = 4

_WORDS = f"""
SELECT item FROM (SELECT item FROM events ORDER BY device DESC, seq DESC LIMIT {SEARCHED})
UNION SELECT item FROM verdicts UNION SELECT tag FROM interests UNION SELECT value FROM attributes
UNION SELECT key FROM (SELECT key FROM requests LIMIT {SEARCHED})
"""


@dataclass(frozen=True)
class Forgotten:
    """What is gone. before, after: rows by table. searched: words looked for in the bytes that are left, and not found.

    files: names of whole files that were removed.
    """

    before: dict[str, int]
    after: dict[str, int]
    searched: int
    files: tuple[str, ...] = ()


def drop_windows(
    store: Store, catalogue: Catalogue, *, window: int, max_events: int = 0, max_age: float = 0.0, now: float = 0.0
) -> int:
    """Drop the oldest training windows of device 0 while they are over a limit; how many events are gone.

    window: events in a training window. max_events: events to keep at most; 0 keeps any number. max_age: seconds;
    0 keeps any age.

    | the oldest window that is left | result |
    |---|---|
    | has `window` events, and more than `max_events` are left with it | dropped |
    | all its times are older than `max_age`, also when it is not full yet | dropped |
    | has no times, and a later one is dropped for its age | dropped |
    | anything else | it stays, and so does all that is newer |

    The held-out event and what came after it always stay. So up to `window - 1` events more than `max_events` can be
    left where few events train, and an event can outlive `max_age` with the rest of its window. Which windows go
    depends on how many events there are and when they happened, never on their items.
    """
    gone = 0
    while dropped := _drop_some(store, catalogue, window, max_events, now - max_age if max_age else -math.inf):
        gone += dropped
    if gone:
        store.read("PRAGMA wal_checkpoint(TRUNCATE)")
    return gone


def _drop_some(store: Store, catalogue: Catalogue, window: int, max_events: int, oldest: float) -> int:
    """Drop windows until `_STEP` events are gone or none is over a limit; how many are. oldest: seconds UTC to keep."""
    with store.transaction() as db:
        last = db.execute("SELECT max(seq) FROM events WHERE device = 0").fetchone()[0]
        start, cut = None, None
        for first, end, newest, full in _windows(db, catalogue, window):
            start = first if start is None else start
            crowded = bool(max_events) and full and last - first + 1 > max_events  # sequence numbers have no gaps
            if crowded or (newest is not None and newest < oldest):
                cut = end
                if end - start >= _STEP:
                    break
            elif newest is not None or oldest == -math.inf:
                break
        if cut is None:
            return 0
        db.execute("DELETE FROM requests WHERE first + count <= ?", (cut,))
        past = "DELETE FROM events WHERE device = 0 AND role = ? AND seq < ?"
        return db.execute(past, (int(Role.TRAIN), cut)).rowcount


def _windows(
    db: sqlite3.Connection, catalogue: Catalogue, length: int
) -> Iterator[tuple[int, int, float | None, bool]]:
    """First sequence number of each training window, the one after its last, its newest time, and whether it is full.

    Events on items that the catalogue does not have are in no window and go with the one around them.
    """
    first, end, newest, count = -1, -1, None, 0
    query = "SELECT seq, item, time FROM events WHERE device = 0 AND role = ? ORDER BY seq"
    for seq, item, time in db.execute(query, (int(Role.TRAIN),)):
        if first < 0:
            first = seq
        end = seq + 1
        newest = time if newest is None else newest if time is None else max(newest, time)
        count += item in catalogue
        if count == length:
            yield first, end, newest, True
            first, newest, count = -1, None, 0
    if first >= 0:
        yield first, end, newest, False


def erase(store: Store, path: str) -> Forgotten:
    """Wipe every table, rebuild the file without them, and look for what was there in the bytes that are left.

    Deleted content is overwritten (`secure_delete`), the file is rebuilt from what it still holds, which is nothing
    (`VACUUM`), and the write-ahead log is cut to no length. Raises DataError when another program keeps the log in use,
    the disk is full, or a word is still found; asking again goes on from there.
    """
    try:
        store.read("PRAGMA secure_delete = ON")
        with store.transaction() as db:
            before = _counts(store)
            words = [word.encode() for (word,) in db.execute(_WORDS)]
            for table in TABLES:
                db.execute(f"DELETE FROM {table}")
        store.read("VACUUM")
        busy = store.read("PRAGMA wal_checkpoint(TRUNCATE)")[0][0]
    except sqlite3.Error as error:
        raise DataError(f"{path}: not everything could be erased ({error}); free the disk and forget again") from None
    if busy:
        raise DataError(f"{path}: another program still reads what was there; end it and forget again")
    schema = "".join(f"{name}{sql}" for name, sql in store.read("SELECT name, sql FROM sqlite_master")).encode()
    telling = [word for word in words if len(word) >= SHORTEST_WORD and word not in schema]
    left = store.content() if path == ":memory:" else _content(Path(path))
    if any(word in left for word in telling):
        raise DataError(f"{path}: found words of events in the file after erasing them; forget again")
    return Forgotten(before, _counts(store), searched=len(telling))


def _counts(store: Store) -> dict[str, int]:
    return {table: store.read(f"SELECT COUNT(*) FROM {table}")[0][0] for table in TABLES}


def _content(path: Path) -> bytes:
    """All bytes of a database file and its companions."""
    parts = (path.with_name(path.name + suffix) for suffix in ("", *COMPANIONS))
    return b"".join(part.read_bytes() for part in parts if part.exists())
