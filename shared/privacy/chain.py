"""An append-only log in which every row carries the hash of all rows before it, and a witness of its newest row.

One SQLite file holds the chains of many owners. A row's hash is SHA-256(previous hash || canonical row), so an edited,
removed or exchanged row is found when its owner's chain is read. Cutting rows off the end, or putting an old copy of
the file back, leaves a chain that is whole; the witness, a second file, remembers how far it once went.

What this cannot notice: an old ledger put back, or a ledger lost, together with its witness; and someone who may write
both files and works the hashes out again. Whoever keeps a `Head` elsewhere (the server, in its checkpoints) notices
these too. A ledger begun anew is a second budget: what one person loses to both adds up.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import PrivacyError

SCHEMA_VERSION = 1

_CHAIN_ID, _WITNESS_ID = 0x68724C47, 0x68725754  # "hrLG" and "hrWT" in SQLite's application_id
_CHAIN = (
    """CREATE TABLE IF NOT EXISTS entries (
        owner INTEGER NOT NULL, seq INTEGER NOT NULL, key TEXT NOT NULL, entry TEXT NOT NULL, hash TEXT NOT NULL,
        PRIMARY KEY (owner, seq), UNIQUE (owner, key)
    ) WITHOUT ROWID""",
    """CREATE TRIGGER IF NOT EXISTS entries_stay BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'a ledger is only appended to'); END""",
    """CREATE TRIGGER IF NOT EXISTS entries_last BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'a ledger is only appended to'); END""",
)
_WITNESS = ("CREATE TABLE IF NOT EXISTS heads (owner INTEGER PRIMARY KEY, seq INTEGER NOT NULL, hash TEXT NOT NULL)",)
_STOP = "No more training on this ledger; ranking goes on"


@dataclass(frozen=True, slots=True)
class Head:
    """How far a chain went: the number of its newest row (from 1; 0 is an empty chain) and that row's hash (hex)."""

    seq: int
    hash: str

    def __post_init__(self) -> None:
        if not (type(self.seq) is int and self.seq >= 0 and isinstance(self.hash, str) and len(self.hash) == 64):
            raise PrivacyError(f"found {self} as the head of a ledger; expected a row number and a SHA-256 in hex")


EMPTY = Head(0, "0" * 64)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a chain that has been verified; text is its entry as canonical JSON."""

    head: Head
    key: str
    text: str

    @property
    def entry(self) -> dict[str, Any]:
        """What was appended."""
        return read_entry(self.text)


class Chain:
    """The chains of all owners in one SQLite file.

    durable: wait for the disk on every append (deployments); a simulation only waits for the operating system.
    witness: the second file, best kept where a backup of the first does not reach; None goes without.

    Every read and every append verifies the owner's whole chain:

    | found | result |
    |---|---|
    | nothing yet, in either file | an empty chain |
    | the chain ends where the witness says | fine |
    | the chain goes on past the witness (killed between the writes), or no witness | the witness is mended |
    | the chain ends before the witness (old backup, rows cut off) | PrivacyError: behind |
    | no row, and the witness knows some (file lost) | PrivacyError: lost |
    | another row where the witness ends (rewritten, another owner's file) | PrivacyError: not the same ledger |
    | a row edited, missing or out of order | PrivacyError that names the first such row |
    | either file unreadable, not ours, or of a newer schema | PrivacyError; the file is not touched |
    """

    def __init__(self, path: str | Path, *, durable: bool = True, witness: str | Path | None = None) -> None:
        self._db = _open(path, durable=durable, schema=_CHAIN, magic=_CHAIN_ID)
        self._witness = None if witness is None else Witness(witness, durable=durable)

    def rows(self, owner: int) -> list[Row]:
        """An owner's rows, oldest first, verified."""
        # The witness first: read after the rows, it could know of an append that another process made in between.
        seen = self._witness.head(owner) if self._witness else EMPTY
        found = _read(self._db, "SELECT seq, key, entry, hash FROM entries WHERE owner = ? ORDER BY seq", owner)
        rows: list[Row] = []
        for number, (seq, key, text, digest) in enumerate(found, start=1):
            expected = _hash(_head(rows), owner, key=key, text=text)
            if (seq, digest) != (number, expected):
                raise PrivacyError(
                    f"row {number} of the ledger does not follow from those before it: it was edited, removed or moved."
                    f" {_STOP}, until the newest untouched copy of the file is put back"
                )
            rows.append(Row(Head(seq, digest), key, text))
        _require(rows, seen)
        if self._witness and _head(rows).seq > seen.seq:
            self._witness.record(owner, _head(rows))
        return rows

    def owners(self) -> list[int]:
        """Owners with at least one row, in order."""
        return [row[0] for row in _read(self._db, "SELECT DISTINCT owner FROM entries ORDER BY owner")]

    def append(
        self,
        owner: int,
        *,
        key: str,
        entry: Mapping[str, Any],
        check: Callable[[Sequence[Row]], None] = lambda past: None,
    ) -> bool:
        """Write one row, in both files, before returning; True when it was new.

        check: sees the owner's past rows and may raise; nothing can be appended by anyone else meanwhile.

        | case | result |
        |---|---|
        | `key` is new and `check` returns | True |
        | `key` is new and `check` raises | that error, nothing written |
        | `key` is there with the same entry | False, nothing written, `check` not asked |
        | `key` is there with another entry | PrivacyError, nothing written |
        | the chain or the witness is refused (table above) | PrivacyError, nothing written |
        | the entry is not JSON; the disk is full, the file locked or read-only | PrivacyError, nothing written |
        | the chain is written and the witness cannot be | PrivacyError; the row counts, appending it again is False |
        """
        text = _canonical(entry)
        with self._transaction():
            past = self.rows(owner)
            known = next((row for row in past if row.key == key), None)
            if known is not None:
                if known.text != text:
                    raise PrivacyError(f"ledger key {key!r} was charged with another release; use a fresh key")
                return False
            check(past)
            head = Head(len(past) + 1, _hash(_head(past), owner, key=key, text=text))
            self._db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", (owner, head.seq, key, text, head.hash))
        if self._witness:
            self._witness.record(owner, head)
        return True

    def head(self, owner: int) -> Head:
        """The newest row of an owner's chain; `EMPTY` when there is none."""
        return _head(self.rows(owner))

    def require(self, owner: int, head: Head) -> None:
        """Raise PrivacyError unless the chain contains `head`, so that nothing runs ahead of its ledger."""
        _require(self.rows(owner), head)

    def close(self) -> None:
        """Close both files."""
        self._db.close()
        if self._witness:
            self._witness.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise PrivacyError(
                f"the ledger could not be written ({error}), so nothing is released; free the file or the disk"
            ) from None
        finally:
            if self._db.in_transaction:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")


class Witness:
    """The newest head of each owner's chain, in a file of its own that only moves forward."""

    def __init__(self, path: str | Path, *, durable: bool) -> None:
        self._db = _open(path, durable=durable, schema=_WITNESS, magic=_WITNESS_ID)

    def head(self, owner: int) -> Head:
        """How far this owner's chain is known to have gone; `EMPTY` for an owner never seen."""
        found = _read(self._db, "SELECT seq, hash FROM heads WHERE owner = ?", owner)
        return Head(*found[0]) if found else EMPTY

    def record(self, owner: int, head: Head) -> None:
        """Remember a head; an older one than the one known changes nothing."""
        try:
            self._db.execute(
                "INSERT INTO heads VALUES (?, ?, ?) ON CONFLICT (owner) DO UPDATE"
                " SET seq = excluded.seq, hash = excluded.hash WHERE excluded.seq > seq",
                (owner, head.seq, head.hash),
            )
        except sqlite3.Error as error:
            raise PrivacyError(
                f"the witness of the ledger could not be written ({error}), so nothing is released; free the disk"
            ) from None

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def read_entry(text: str) -> dict[str, Any]:
    """The entry of a row; PrivacyError when it is no JSON object."""
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise PrivacyError(f"found a ledger row without an entry ({error}). {_STOP}") from None


def _head(rows: Sequence[Row]) -> Head:
    return rows[-1].head if rows else EMPTY


def _require(rows: Sequence[Row], head: Head) -> None:
    if head.seq and not rows:
        raise PrivacyError(
            f"the ledger is lost: it is empty and {head.seq} rows were written. {_STOP}. Put the newest ledger file"
            " back; where there is none, begin a new ledger and witness with data that was never used (on a device: an"
            " empty event store)"
        )
    if head.seq > len(rows):
        raise PrivacyError(
            f"the ledger is behind: it ends at row {len(rows)} and {head.seq} were written, so a backup was restored or"
            f" rows were cut off. {_STOP}, until the newest ledger file is put back"
        )
    if (rows[head.seq - 1].head if head.seq else EMPTY) != head:
        raise PrivacyError(
            f"row {head.seq} of the ledger is not the one that was written: another ledger, or a rewritten one."
            f" {_STOP}, until the right ledger file is put back"
        )


def _canonical(entry: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(entry), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PrivacyError(f"found a ledger entry that is not JSON ({error}); expected plain finite values") from None


def _hash(previous: Head, owner: int, *, key: str, text: str) -> str:
    row = f"{previous.hash}\n{owner}\n{previous.seq + 1}\n{len(key)}\n{key}\n{text}"  # one reading, whatever the key
    return hashlib.sha256(row.encode()).hexdigest()


def _read(db: sqlite3.Connection, query: str, *values: object) -> list[tuple[Any, ...]]:
    try:
        return db.execute(query, values).fetchall()
    except sqlite3.Error as error:
        raise PrivacyError(f"found a damaged ledger ({error}). {_STOP}, until the newest copy is put back") from None


def _open(path: str | Path, *, durable: bool, schema: Sequence[str], magic: int) -> sqlite3.Connection:
    """Open one of the two files; a new or empty one gets its tables, any other content is left alone."""
    try:
        db = sqlite3.connect(str(path), timeout=60, isolation_level=None)
        db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
        if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("BEGIN IMMEDIATE")
            for statement in (*schema, f"PRAGMA application_id = {magic}", f"PRAGMA user_version = {SCHEMA_VERSION}"):
                db.execute(statement)
            db.execute("COMMIT")
        found, version = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    except sqlite3.Error as error:
        raise PrivacyError(f"{path}: found no usable ledger ({error}); training stops without one") from None
    if found == magic and version == SCHEMA_VERSION:
        return db
    db.close()
    if found == magic and version > SCHEMA_VERSION:
        raise PrivacyError(
            f"{path}: found ledger schema {version}; expected {SCHEMA_VERSION} or older; update homerank"
        )
    raise PrivacyError(f"{path}: found another kind of database; expected a ledger or nothing; choose another path")
