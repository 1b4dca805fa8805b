"""From an event to a new slate: what a person waits for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from client.bench.timing import Figures, Request, measure
from client.bench.workbench import EVENTS, Workbench, process_memory, slate
from client.engine import Engine
from client.ranker import score_catalogue
from client.samples import seen_items
from client.store import History
from shared.model import Stage
from shared.schema import Event, EventKind


def after_an_event(bench: Workbench, *, stage: Stage, events: int = EVENTS, engine: Engine | None = None) -> Figures:
    """An event is recorded in a state that has ranked `events` others, and the best of all items are chosen.

    engine: the bench's own unless given. memory: of the process.
    """
    engine = engine or bench.engine
    count = len(engine.catalogue)

    def cases() -> Iterator[Request]:
        generator = bench.generator()
        while True:
            engine.replace(bench.history(events, generator, items=count))
            ranking(engine, stage=stage)
            event = Event(int(generator.integers(count)), 60.0 * events, EventKind.CLICK)

            def request(event: Event = event) -> object:
                engine.add(event)
                return ranking(engine, stage=stage)

            yield request

    return replace(measure(cases(), requests=bench.requests), memory=process_memory())


def full_window(bench: Workbench) -> Figures:
    """The same when the window of the trunk is full, so that it reads all events anew."""
    return after_an_event(bench, stage="adapter", events=bench.engine.length)


def again(bench: Workbench) -> Figures:
    """A ranking of a state that has been ranked before, as another page or filter of the same moment is."""
    bench.engine.replace(bench.history(EVENTS, bench.generator()))

    def cases() -> Iterator[Request]:
        while True:
            yield lambda: ranking(bench.engine, stage="adapter")

    return measure(cases(), requests=bench.requests)


def without_state(bench: Workbench) -> Figures:
    """The whole history is read anew, the new event being its last."""

    def cases() -> Iterator[Request]:
        generator, runtime = bench.generator(), bench.engine.runtime
        while True:
            history = bench.history(EVENTS + 1, generator)
            may = np.ones(len(bench.catalogue), dtype=np.bool_)
            may[seen_items(history)] = False

            def request(history: History = history, may: NDArray[np.bool_] = may) -> object:
                return slate({"all": score_catalogue(runtime, [history])[0]}, may)

            yield request

    return measure(cases(), requests=bench.requests)


def ranking(engine: Engine, *, stage: Stage, seen: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Unseen items of a slate now, best first. seen: bool (N,); None is what the state has seen."""
    now = engine.now
    may = ~(now.past.seen if seen is None else seen)
    items = now.candidates(stage=stage, allowed=may)
    parts = now.scores(stage=stage, items=items)
    return slate(parts, may) if items is None else items[slate(parts, may[items])]
