"""The ledger: what each device's data has flowed into, written before it flows.

A ledger lives in a file of its own, apart from events and adapters. One file can hold the ledgers of many
virtual devices. Prices are not stored: `shared.privacy.accounting` computes them from the releases.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared.errors import BudgetError, PrivacyError
from shared.privacy.accounting import Release, epsilon_of

_SCHEMA = """
CREATE TABLE IF NOT EXISTS releases (
    device INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    key TEXT NOT NULL,
    release TEXT NOT NULL,
    PRIMARY KEY (device, seq),
    UNIQUE (device, key)
) WITHOUT ROWID
"""


class Ledger:
    """All devices' ledgers in one SQLite file.

    durable: wait for the disk on every charge (real devices); a simulation only waits for the operating
    system.
    """

    def __init__(self, path: str | Path, *, durable: bool = True) -> None:
        try:
            self._db = sqlite3.connect(str(path), timeout=60, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
            self._db.execute(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise PrivacyError(f"{path}: found no usable ledger ({error}); training stops without one") from None

    def releases(self, device: int) -> list[Release]:
        """What a device has been charged for, oldest first."""
        rows = self._read("SELECT release FROM releases WHERE device = ? ORDER BY seq", device)
        return [_release(text) for (text,) in rows]

    def devices(self) -> list[int]:
        """Devices that have been charged at least once."""
        return [row[0] for row in self._read("SELECT DISTINCT device FROM releases ORDER BY device")]

    def spent(self, device: int, *, delta: float) -> float:
        """Epsilon a device has spent so far at `delta`."""
        return epsilon_of(self.releases(device), delta=delta)

    def charge(self, device: int, release: Release, *, key: str, epsilon: float, delta: float) -> bool:
        """Write a release before it happens; True when it was new.

        | case | result |
        |---|---|
        | the budget would be exceeded | BudgetError, nothing written |
        | `key` was charged before with the same release | False, nothing written |
        | `key` was charged before with another release | PrivacyError, nothing written |

        A key names one deterministic release (run, round, phase, adapter): answering it again gives away
        nothing new only because a simulation's seeded noise makes the answer identical. Real devices use
        fresh keys.
        """
        self._db.execute("BEGIN IMMEDIATE")
        try:
            known = self._read("SELECT release FROM releases WHERE device = ? AND key = ?", device, key)
            if known:
                if _release(known[0][0]) != release:
                    raise PrivacyError(f"ledger key {key!r} was charged with another release; use a fresh key")
                self._db.execute("ROLLBACK")
                return False
            past = self.releases(device)
            cost = epsilon_of([*past, release], delta=delta)
            if cost > epsilon * (1 + 1e-6):
                raise BudgetError(
                    f"this release would bring the device to epsilon {cost:.3f} at delta {delta:g}; its limit"
                    f" is {epsilon:.3f}. It goes on ranking and stops training"
                )
            self._db.execute(
                "INSERT INTO releases VALUES (?, ?, ?, ?)",
                (device, len(past), key, json.dumps(asdict(release))),
            )
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        return True

    def _read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise _damaged(error) from None

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _release(text: str) -> Release:
    try:
        return Release(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise _damaged(error) from None


def _damaged(error: Exception) -> PrivacyError:
    return PrivacyError(f"found a damaged ledger ({error}); training stops without one")
