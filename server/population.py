"""How many devices there are: read from the registry and from Flower's state, neither of which is ever written here."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

#: Flower's `node` table holds a row for each registered device and until when its last heartbeat counts.
_ONLINE = "SELECT count(*) FROM node WHERE status = 'online' AND online_until > ?"
_KNOWN = "SELECT count(*) FROM node WHERE status != 'unregistered'"
_ENROLLED = "SELECT count(*) FROM devices WHERE revoked IS NULL"
_REVOKED = "SELECT count(*) FROM devices WHERE revoked IS NOT NULL"


@dataclass(frozen=True)
class Population:
    """Numbers of devices; None where the file that would say so is not there or not readable.

    online: with a heartbeat that counts. known: registered with Flower. enrolled, revoked: in the registry.
    """

    online: int | None = None
    known: int | None = None
    enrolled: int | None = None
    revoked: int | None = None

    @property
    def members(self) -> int | None:
        """Devices that may take part."""
        return self.known if self.enrolled is None else self.enrolled


def population(folder: Path, *, clock: Callable[[], float] = time.time) -> Population:
    """Count the devices of a deployment folder. clock: seconds UTC now."""
    state, registry = folder / "superlink.sqlite", folder / "registry.sqlite"
    return Population(
        online=_count(state, _ONLINE, clock()),
        known=_count(state, _KNOWN),
        enrolled=_count(registry, _ENROLLED),
        revoked=_count(registry, _REVOKED),
    )


def _count(path: Path, query: str, *values: float) -> int | None:
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5)) as database:
            return int(database.execute(query, values).fetchone()[0])
    except sqlite3.Error:
        return None
