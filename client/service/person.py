"""One person at this device: their profile opened, their events and their ranking kept in step.

Everything is in this process only, and whoever holds the object may read and change all of it; the HTTP API and the
commands stand before it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from threading import RLock
from typing import Any

from client.erasure import Forgotten
from client.events import NewEvent
from client.journal import Recorded
from client.limits import Limits
from client.portability import import_data
from client.profile import Preferences, Profile
from client.service.owner import limits_of
from client.service.shop import OpenEngine, Shop
from client.service.weights import Weights
from shared.artifacts import load_catalogue, save_catalogue
from shared.catalogue import Catalogue
from shared.errors import CatalogueError, DataError
from shared.schema import Event, EventKind


class Person:
    """A profile, open. Any number of threads may use it; close it at the end.

    engine: makes the ranking engine; injected, so that a device without torch needs none. limits: what taking part may
    cost, what the owner said before unless given. Raises ConfigError and DataError as `Profile` and `Journal` do.
    """

    def __init__(self, profile: Profile, *, engine: OpenEngine, limits: Limits | None = None) -> None:
        self.profile = profile
        self.limits = limits_of(profile) if limits is None else limits
        self.preferences: Preferences = profile.preferences()
        self.weights = Weights(profile)
        self._open_engine = engine
        self._lock = RLock()
        self._shop: Shop | None = None
        if profile.catalogue.exists():
            self._shop = Shop(profile, load_catalogue(profile.catalogue), engine=engine)

    @property
    def shop(self) -> Shop:
        """What there is to rank. CatalogueError while there is nothing."""
        shop = self._shop
        if shop is None:
            raise CatalogueError(
                "found no catalogue yet; import one, or a history with one: homerank-client import FOLDER"
            )
        return shop

    @property
    def empty(self) -> bool:
        """Whether there is no catalogue yet."""
        return self._shop is None

    def record(self, events: Sequence[NewEvent], *, key: str | None = None) -> Recorded:
        """Write events down; the next ranking knows them. Errors and `key` as for `Journal.record`."""
        with self._lock:
            shop = self.shop
            done = shop.journal.record(events, key=key)
            if done.new:
                for event in _stored(shop, done):
                    shop.happened(event)
                self._keep_within_limits(shop)
        return done

    def choose(self, changes: dict[str, Any]) -> Preferences:
        """Change preferences. ConfigError for a value that means nothing."""
        with self._lock:
            changed = self.preferences.changed(changes)
            self.profile.save_preferences(changed)
            self.preferences = changed
            if self._shop is not None:
                self._keep_within_limits(self._shop)
                if changed.personal:
                    self.weights.learn(self._shop.engine, self._shop.journal)
        return changed

    def forget(self) -> Forgotten:
        """Wipe everything about the person but the ledger, see `Profile.forget`; the ranking starts afresh."""
        with self._lock:
            shop = self.shop
            found = self.profile.forget(shop.journal)
            shop.read_again()
            self.weights.forget()
        return found

    def import_history(self, folder: Path, *, user: str | None = None) -> int:
        """Fill a profile without events from a data folder, see `client.portability.import_data`; number of events."""
        with self._lock:
            count = import_data(self.profile, folder, user=user)
            self._reopen()
        return count

    def import_catalogue(self, catalogue: Catalogue) -> int:
        """Rank these items from now on; their number. An adapter for other items is not used any more.

        Raises DataError when an item that the person has events on is not among them.
        """
        with self._lock:
            if self._shop is not None:
                met = self._shop.journal.store.read("SELECT DISTINCT item FROM events WHERE device = 0")
                lost = [item for (item,) in met if item not in catalogue]
                if lost:
                    raise DataError(
                        f"found a catalogue without {len(lost)} items that there are events on, such as"
                        f" {lost[0][:60]!r}; expected all of them; forget first, or use another profile"
                    )
            save_catalogue(catalogue, self.profile.catalogue)
            self.profile.catalogue.chmod(0o600)
            self._reopen()
        return len(catalogue)

    def install(self, folder: Path) -> None:
        """Rank with another adapter from now on, and keep it; rankings under way finish with the old one.

        Raises AdapterError when it is damaged, does not fit, or fails its self-check: the old one stays.
        """
        self._change_to(folder)
        _keep_adapter(folder, self.profile.adapter)

    def delivered(self, folder: Path) -> None:
        """Use an adapter that training put into the profile. AdapterError as for `install`.

        Where an exported model ranks, the adapter waits in the profile to be exported.
        """
        if self.shop.engine.kind == "full":
            self._change_to(folder)

    def _change_to(self, folder: Path) -> None:
        shop = self.shop
        shop.change_to(folder)
        if self.preferences.personal:
            self.weights.learn(shop.engine, shop.journal)

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            if self._shop is not None:
                self._shop.journal.close()

    def _reopen(self) -> None:
        if self._shop is not None:
            self._shop.journal.close()
        self._shop = Shop(self.profile, load_catalogue(self.profile.catalogue), engine=self._open_engine)

    def _keep_within_limits(self, shop: Shop) -> None:
        kept = self.preferences
        if not (kept.retention_events or kept.retention_days):
            return
        window = shop.engine.length
        if shop.journal.retain(window=window, max_events=kept.retention_events, max_days=kept.retention_days):
            shop.read_again()


def _stored(shop: Shop, done: Recorded) -> list[Event]:
    """Recorded events as they are on the disk, oldest first."""
    rows = shop.journal.store.read(
        "SELECT item, time, kind, value FROM events WHERE device = 0 AND seq >= ? AND seq < ? ORDER BY seq",
        (done.first, done.first + done.count),
    )
    return [
        Event(shop.catalogue.index(item), time, EventKind(kind), float("nan") if value is None else value)
        for item, time, kind, value in rows
    ]


def _keep_adapter(folder: Path, place: Path) -> None:
    """Copy an adapter folder to where the profile keeps it; the one before stays beside it."""
    if folder.resolve() == place.resolve():
        return
    fresh, previous = place.with_name(".adapter.new"), place.with_name("adapter.previous")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(folder, fresh)
    if place.exists():
        shutil.rmtree(previous, ignore_errors=True)
        place.rename(previous)
    fresh.rename(place)
