"""What there is to rank and to say, once a profile has a catalogue. The ranking itself is opened when first needed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import RLock

import numpy as np
from numpy.typing import NDArray

from client.engine import Engine
from client.exploration import Taste, leading_directions
from client.journal import Journal
from client.profile import Profile
from client.search import Searcher
from client.slate import Shelf
from client.store import History
from client.tags import TagTable
from shared.catalogue import Catalogue
from shared.errors import AdapterError
from shared.schema import Event

log = logging.getLogger("homerank.client")

#: Newest events that are read when a ranking is made ready; more than any window.
NEWEST = 4096

#: Makes an engine: catalogue, newest history, adapter folder or None.
OpenEngine = Callable[[Catalogue, History, Path | None], Engine]


@dataclass
class Ranking:
    """An engine and what goes with it. problem: why the adapter that was there is not used, empty if it is."""

    engine: Engine
    searcher: Searcher
    shelf: Shelf
    directions: NDArray[np.float32]
    taste: Taste
    problem: str = ""

    @classmethod
    def of(cls, engine: Engine, history: History, *, problem: str = "") -> Ranking:
        """Everything that an engine's vectors make possible."""
        made = cls(
            engine,
            Searcher(engine.catalogue, plain=engine.plain, space=engine.space, encode=engine.encode),
            Shelf.of(engine.catalogue, vectors=engine.plain, popularity=engine.popularity),
            leading_directions(engine.plain),
            Taste.unknown(),
            problem,
        )
        made.taste = made.taste_of(history)
        return made

    def taste_of(self, history: History) -> Taste:
        """What a history teaches about exploration."""
        return Taste.unknown(self.directions.shape[1]).learn_from(history, self.directions)


class Shop:
    """A profile's catalogue, events, and ranking.

    Attributes of the ranking open it: that takes seconds with the full engine, and commands that do not rank need none.
    """

    def __init__(self, profile: Profile, catalogue: Catalogue, *, engine: OpenEngine) -> None:
        self.catalogue = catalogue
        self.journal: Journal = profile.journal(catalogue)
        self._profile, self._open = profile, engine
        self._lock = RLock()
        self._ranking: Ranking | None = None

    @property
    def ranking(self) -> Ranking:
        """The ranking, opened when first asked for. AdapterError when not even a fresh one can be made."""
        if self._ranking is None:
            with self._lock:
                if self._ranking is None:
                    self._ranking = self._opened()
        return self._ranking

    @property
    def engine(self) -> Engine:
        """The engine in use."""
        return self.ranking.engine

    @cached_property
    def tags(self) -> TagTable:
        """The catalogue's tags."""
        return TagTable.of_catalogue(self.catalogue)

    @property
    def events(self) -> int:
        """How many events there are; their numbers have no gaps."""
        ends = "SELECT (SELECT max(seq) FROM events WHERE device = 0), (SELECT min(seq) FROM events WHERE device = 0)"
        last, first = self.journal.store.read(ends)[0]
        return 0 if last is None else int(last - first + 1)

    def happened(self, event: Event) -> None:
        """Tell the ranking of an event that was recorded; one that is not open yet will read it."""
        with self._lock:
            if self._ranking is not None:
                self._ranking.engine.add(event)
                self._ranking.taste = self._ranking.taste.learn_event(event, self._ranking.directions)

    def read_again(self) -> None:
        """Read the history anew, after events were taken away, and drop what queries left in memory."""
        with self._lock:
            if self._ranking is not None:
                history = self.journal.newest(NEWEST)
                self._ranking.engine.replace(history)
                self._ranking.searcher.forget()
                self._ranking.taste = self._ranking.taste_of(history)

    def change_to(self, folder: Path) -> None:
        """Rank with another adapter from now on; who ranks meanwhile finishes with the old one.

        Raises AdapterError when it is damaged, does not fit or fails its self-check: the old one stays.
        """
        before = self.ranking
        if before.engine.install(folder):
            shelf = replace(before.shelf, popularity=before.engine.popularity)
            self._ranking = replace(before, shelf=shelf, problem="")
            return
        engine = self._open(self.catalogue, self.journal.newest(NEWEST), folder)  # the old one serves meanwhile
        fresh = Ranking.of(engine, self.journal.newest(NEWEST))
        with self._lock:
            history = self.journal.newest(NEWEST)
            engine.replace(history)
            fresh.taste = fresh.taste_of(history)
            self._ranking = fresh

    def _opened(self) -> Ranking:
        problem = ""
        adapter = self._profile.adapter
        for folder in (adapter, adapter.with_name(f"{adapter.name}.previous")):
            if folder.exists():
                try:
                    history = self.journal.newest(NEWEST)
                    return Ranking.of(self._open(self.catalogue, history, folder), history, problem=problem)
                except AdapterError as error:
                    problem = problem or str(error)
                    log.warning("an adapter is not used: %s", error)
        history = self.journal.newest(NEWEST)
        return Ranking.of(self._open(self.catalogue, history, None), history, problem=problem)
