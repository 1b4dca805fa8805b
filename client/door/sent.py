"""What left this device: a log that is only added to, and holds no behaviour.

It lies beside the ledger and outlives forgetting like it, because what was sent was sent. Answers computed from
behaviour stay for good; of everything else (refusals, public keys, receipts) the newest thousand rows. The totals count
all of it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from shared.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Rows that no cap counts, kept at most.
OTHERS_KEPT = 1_000
VERSION = 1

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS sent (
        id INTEGER PRIMARY KEY, time REAL NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL, phase TEXT NOT NULL,
        stage TEXT NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL, refusal TEXT NOT NULL, delta REAL NOT NULL,
        computed INTEGER NOT NULL, epsilon TEXT NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS sent_computed ON sent (computed, run, time)",
    "CREATE TABLE IF NOT EXISTS totals (rounds INTEGER NOT NULL, answers INTEGER NOT NULL, bytes INTEGER NOT NULL)",
    "INSERT INTO totals SELECT 0, 0, 0 WHERE NOT EXISTS (SELECT 1 FROM totals)",
    """CREATE TRIGGER IF NOT EXISTS sent_stays BEFORE UPDATE ON sent
    BEGIN SELECT RAISE(ABORT, 'what was sent was sent'); END""",
    """CREATE TRIGGER IF NOT EXISTS sent_lasts BEFORE DELETE ON sent WHEN OLD.computed
    BEGIN SELECT RAISE(ABORT, 'what was sent was sent'); END""",
)
_COLUMNS = "time, run, round, phase, stage, bytes, sha256, refusal, delta, computed, epsilon"


@dataclass(frozen=True)
class Sent:
    """One message that left the device.

    time: seconds UTC. run, round, phase, stage: of the question, empty where it was not read. bytes: its length.
    sha256: of the packed or masked array, or of the whole message where there is none. refusal: its code, or empty.
    epsilon: by how much the ledger grew for it, by unit, at `delta`. computed: whether it was computed from behaviour,
    or the ledger was charged for it; a refusal can have been, when training was cut short after the charge.
    """

    time: float
    run: str
    round: int
    phase: str
    stage: str
    bytes: int
    sha256: str
    refusal: str
    delta: float
    computed: bool
    epsilon: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Totals:
    """Over the device's life. rounds: of training. answers: computed from behaviour. bytes: of all messages."""

    rounds: int
    answers: int
    bytes: int


class SentLog:
    """The log in one SQLite file; ":memory:" for tests. Several threads may use it.

    Raises DataError when it cannot be opened, read or written; whoever cannot write it must not send.
    """

    def __init__(self, path: str | Path) -> None:
        self._path, self._lock = path, RLock()
        try:
            self._db = sqlite3.connect(str(path), timeout=60, isolation_level=None, check_same_thread=False)
            if str(path) != ":memory:":
                Path(path).chmod(0o600)
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found > VERSION:
                raise DataError(
                    f"{path}: found version {found} of the log; expected {VERSION} or older; update homerank"
                )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            for statement in (*_SCHEMA, f"PRAGMA user_version = {VERSION}"):
                self._db.execute(statement)
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from None

    def write(self, sent: Sent) -> None:
        """Add one row; it is on the disk when this returns."""
        given = sent.computed and not sent.refusal
        with self._using() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                values = (*astuple(sent)[:-1], json.dumps(dict(sent.epsilon)))
                db.execute(f"INSERT INTO sent ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})", values)
                db.execute(
                    "UPDATE totals SET rounds = rounds + ?, answers = answers + ?, bytes = bytes + ?",
                    (int(given and sent.phase == "train"), int(given), sent.bytes),
                )
                db.execute(
                    "DELETE FROM sent WHERE NOT computed AND id <= (SELECT id FROM sent WHERE NOT computed"
                    " ORDER BY id DESC LIMIT 1 OFFSET ?)",
                    (OTHERS_KEPT,),
                )
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def newest(self, count: int = 100, *, before: int | None = None) -> list[tuple[int, Sent]]:
        """The last rows with their numbers, newest first; before: only rows of a smaller number."""
        query = f"SELECT id, {_COLUMNS} FROM sent WHERE id < ? ORDER BY id DESC LIMIT ?"
        with self._using() as db:
            rows = db.execute(query, (2**62 if before is None else before, count)).fetchall()
        return [(row[0], _row(row[1:])) for row in rows]

    def last_round(self) -> Sent | None:
        """The newest answer that was computed from behaviour."""
        query = f"SELECT {_COLUMNS} FROM sent WHERE computed AND refusal = '' ORDER BY id DESC LIMIT 1"
        with self._using() as db:
            row = db.execute(query).fetchone()
        return None if row is None else _row(row)

    def totals(self) -> Totals:
        """Sums over all rows that ever were."""
        with self._using() as db:
            return Totals(*db.execute("SELECT rounds, answers, bytes FROM totals").fetchone())

    def given(self, *, run: str | None = None, between: tuple[float, float] | None = None) -> int:
        """How many answers were computed from behaviour or charged, to one run, within a span of seconds UTC."""
        query, values = "SELECT COUNT(*) FROM sent WHERE computed", list[object]()
        if run is not None:
            query, values = f"{query} AND run = ?", [run]
        if between is not None:
            query, values = f"{query} AND time > ? AND time <= ?", [*values, *between]
        with self._using() as db:
            return int(db.execute(query, values).fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> DataError:
        return DataError(
            f"{self._path}: the log of what left this device cannot be used ({error}), so nothing leaves; free the file"
            " or the disk, or move the file away for a new one"
        )


def read_sent(path: Path, count: int = 100, *, before: int | None = None) -> tuple[list[tuple[int, Sent]], Totals]:
    """The newest rows of a log with their numbers, and its totals, for a page that shows them; see `SentLog`."""
    log = SentLog(path)
    try:
        return log.newest(count, before=before), log.totals()
    finally:
        log.close()


def _row(values: tuple[Any, ...]) -> Sent:
    found = dict(zip(_COLUMNS.split(", "), values, strict=True))
    return Sent(**{**found, "computed": bool(found["computed"]), "epsilon": json.loads(found["epsilon"])})
