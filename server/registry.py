"""Who may take part: enrolment tokens and the devices that redeemed them, in one SQLite file.

A token is kept as the SHA-256 of its secret, which is random enough that no slower hash is needed. A device is its
public key, the node id that Flower gave it, and two times. Nothing else is known of it, not even its address.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shared.enrolment import SECRET_BYTES, EnrolmentRefused
from shared.errors import DeploymentError

FILE = "registry.sqlite"
SCHEMA_VERSION = 1

_REGISTRY_ID = 0x68725247  # "hrRG" in SQLite's application_id
_TABLES = (
    """CREATE TABLE devices (
        number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, node TEXT UNIQUE,
        enrolled REAL NOT NULL, revoked REAL
    )""",
    """CREATE TABLE tokens (
        hash TEXT PRIMARY KEY, made REAL NOT NULL, expires REAL NOT NULL,
        device INTEGER UNIQUE REFERENCES devices (number)
    ) WITHOUT ROWID""",
)


@dataclass(frozen=True)
class Enrolled:
    """A device. key: OpenSSH public key without comment. node: Flower's id of it, "" until Flower knows it.

    enrolled, revoked: seconds UTC; revoked is None while it may take part.
    """

    number: int
    key: str
    node: str
    enrolled: float
    revoked: float | None


class Registry:
    """The registry of one deployment; safe for several processes. clock: seconds UTC now."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        try:
            with _private():
                self._db = sqlite3.connect(str(path), timeout=30, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                self._db.execute("PRAGMA journal_mode = WAL")
                with self._transaction():
                    if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                        for statement in _TABLES:
                            self._db.execute(statement)
                        self._db.execute(f"PRAGMA application_id = {_REGISTRY_ID}")
                        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            kind, version = (self._db.execute(f"PRAGMA {n}").fetchone()[0] for n in ("application_id", "user_version"))
        except sqlite3.Error as error:
            raise DeploymentError(f"{path}: found no usable registry ({error}); restore it from a backup") from None
        if (kind, version) != (_REGISTRY_ID, SCHEMA_VERSION):
            self._db.close()
            raise DeploymentError(
                f"{path}: found another kind of database or schema {version}; expected a registry of schema"
                f" {SCHEMA_VERSION}"
            )

    # --- tokens ----------------------------------------------------------------------------------------------

    def issue(self, count: int, *, hours: float) -> list[bytes]:
        """Make secrets for so many tokens. Who holds one can redeem it, once, within `hours`; they are not kept."""
        made, now = [secrets.token_bytes(SECRET_BYTES) for _ in range(count)], self._clock()
        with self._transaction():
            self._db.execute("DELETE FROM tokens WHERE device IS NULL AND expires < ?", (now - 30 * 86400,))
            self._db.executemany(
                "INSERT INTO tokens VALUES (?, ?, ?, NULL)",
                [(_hash(secret), now, now + 3600 * hours) for secret in made],
            )
        return made

    def redeem(self, secret: bytes, key: str) -> Enrolled:
        """Burn a token for the device with this public key; its row, with `node` empty until `registered`.

        | case | result |
        |---|---|
        | never redeemed, not expired, the key is new | the token is burnt and the device written, in one transaction |
        | redeemed by the same key (the answer was lost) | the same device again, even after the token's end |
        | redeemed by another key | EnrolmentRefused `used` |
        | redeemed by the same key, and that device was revoked | EnrolmentRefused `revoked` |
        | the key is registered already, by hand or with another token | EnrolmentRefused `registered`, nothing burnt |
        | the same, and it was revoked | EnrolmentRefused `revoked`, nothing burnt |
        | expired | EnrolmentRefused `expired` |
        | no such token | EnrolmentRefused `unknown` |
        """
        now = self._clock()
        with self._transaction():
            token = self._db.execute("SELECT expires, device FROM tokens WHERE hash = ?", (_hash(secret),)).fetchone()
            if token is None:
                raise EnrolmentRefused("unknown")
            expires, number = token
            if number is not None:
                device = self._one("number", number)
                if device.key != key:
                    raise EnrolmentRefused("used")
                if device.revoked is not None:
                    raise EnrolmentRefused("revoked")
                return device
            if now > expires:
                raise EnrolmentRefused("expired")
            if known := self._rows("WHERE key = ?", key):
                raise EnrolmentRefused("registered" if known[0].revoked is None else "revoked")
            number = self._add(key, now)
            self._db.execute("UPDATE tokens SET device = ? WHERE hash = ?", (number, _hash(secret)))
        return self._one("number", number)

    def open_tokens(self) -> int:
        """Tokens that can still be redeemed."""
        query = "SELECT count(*) FROM tokens WHERE device IS NULL AND expires >= ?"
        return int(self._db.execute(query, (self._clock(),)).fetchone()[0])

    # --- devices ---------------------------------------------------------------------------------------------

    def admit(self, key: str, node: str) -> Enrolled:
        """Write down a device that Flower registered by hand; one that is there gets its node id."""
        with self._transaction():
            known = self._rows("WHERE key = ?", key)
            number = known[0].number if known else self._add(key, self._clock())
            self._db.execute("UPDATE devices SET node = ? WHERE number = ?", (node, number))
        return self._one("number", number)

    def registered(self, number: int, node: str) -> None:
        """Write down the node id that Flower gave a device."""
        self._db.execute("UPDATE devices SET node = ? WHERE number = ?", (node, number))

    def revoke(self, number: int) -> Enrolled:
        """Write down that a device may no longer take part; the first time counts."""
        query = "UPDATE devices SET revoked = ? WHERE number = ? AND revoked IS NULL"
        self._db.execute(query, (self._clock(), number))
        return self._one("number", number)

    def carry_over(self, newer: Registry) -> None:
        """Take from a newer registry of the same deployment what must not be undone: revocations and burnt tokens."""
        with self._transaction():
            for device in newer._rows("WHERE revoked IS NOT NULL"):
                self._db.execute(
                    "INSERT INTO devices (key, enrolled, revoked) VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE"
                    " SET revoked = coalesce(revoked, excluded.revoked)",
                    (device.key, device.enrolled, device.revoked),
                )
            burnt = newer._db.execute("SELECT hash FROM tokens WHERE device IS NOT NULL").fetchall()
            self._db.executemany("DELETE FROM tokens WHERE hash = ? AND device IS NULL", burnt)

    def devices(self) -> list[Enrolled]:
        """All devices, revoked ones too, in the order in which they came."""
        return self._rows("ORDER BY number")

    def find(self, text: str) -> Enrolled:
        """A device by its number, node id or public key (whole line or file content). DeploymentError when unknown."""
        key = " ".join(text.split()[:2])
        found = self._rows("WHERE CAST(number AS TEXT) = ? OR node = ? OR key = ?", text, text, key)
        if len(found) != 1:
            raise DeploymentError(
                f"found {len(found)} devices for {text[:80]!r}; expected a number or node id that `homerank-server"
                " devices` lists"
            )
        return found[0]

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _add(self, key: str, now: float) -> int:
        added = self._db.execute("INSERT INTO devices (key, enrolled) VALUES (?, ?)", (key, now))
        return int(added.lastrowid or 0)

    def _one(self, column: str, value: object) -> Enrolled:
        return self._rows(f"WHERE {column} = ?", value)[0]

    def _rows(self, rest: str, *values: object) -> list[Enrolled]:
        query = f"SELECT number, key, coalesce(node, ''), enrolled, revoked FROM devices {rest}"
        return [Enrolled(*row) for row in self._db.execute(query, values)]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Write all or nothing, while nobody else writes."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


@contextmanager
def _private() -> Iterator[None]:
    """Files made inside are their owner's alone."""
    import os

    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _hash(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()
