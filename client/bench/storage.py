"""A store of a million events beside one of a thousand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from client.bench.ranking import ranking
from client.bench.timing import WARM_UP, Figures, summed_up, timed
from client.bench.workbench import EVENTS, Workbench
from client.events import NewEvent
from client.journal import Journal
from shared.schema import Event, EventKind

FEW, MANY = 1_000, 1_000_000


def recommend(bench: Workbench) -> Figures:
    """An event is written to a store of a million, recorded in the state and ranked. ratio: to a store of a thousand.

    The two stores take turns, so that whatever else the machine does slows both down.
    """
    with bench.journal(FEW) as few, bench.journal(MANY) as many:
        taken: dict[Journal, list[float]] = {few: [], many: []}
        generator = bench.generator()
        for _ in range(WARM_UP + bench.requests):
            for journal, times in taken.items():
                bench.engine.replace(journal.newest(EVENTS))
                bench.engine.now.scores()
                item = int(generator.integers(len(bench.catalogue)))
                times.append(timed(partial(_recorded, bench, journal, item)))
    small, large = (summed_up(times[WARM_UP:]) for times in taken.values())
    return replace(large, ratio=large.p50 / small.p50)


def forget(bench: Workbench) -> Figures:
    """A million events are wiped, the file is made anew and searched for what was there. memory: of the file."""
    with bench.journal(MANY) as journal:
        size = len(journal.store.content())
        return replace(summed_up([timed(journal.forget)]), memory=size)


def _recorded(bench: Workbench, journal: Journal, item: int) -> object:
    journal.record([NewEvent(bench.catalogue.items[item].id)])
    bench.engine.add(Event(item, np.nan, EventKind.CLICK))
    return ranking(bench.engine, stage="adapter", seen=journal.seen())
