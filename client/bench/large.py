"""A ranking of a catalogue that is too large to be scored whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from client.bench.ranking import after_an_event
from client.bench.search import AROUND, BEST
from client.bench.timing import Figures
from client.bench.workbench import EVENTS, Workbench, random_state
from client.full import FullEngine
from client.retrieval import largest
from shared.catalogue import Catalogue
from shared.items import ItemTable
from shared.runtime import Runtime
from shared.schema import Item
from shared.vectors import make_views, raw_vectors

ITEMS = 100_000
#: States whose proposals are compared with the scores of all items.
COMPARED = 20


def slate(bench: Workbench) -> Figures:
    """An event is recorded, items are proposed and scored and the best chosen. recall: of the 100 best by score, among
    those proposed. The adapter is random, and takes part. memory: of the process.
    """
    engine, generator = large_engine(bench), bench.generator()
    found = after_an_event(bench, stage="adapter", engine=engine)
    shares = []
    for _ in range(COMPARED):
        engine.replace(bench.history(EVENTS, generator, items=ITEMS))
        scores = sum(engine.now.scores().values(), start=np.zeros(ITEMS, dtype=np.float32))
        proposed = engine.now.candidates()
        shares.append(1.0 if proposed is None else np.isin(largest(scores, BEST), proposed).mean())
    return replace(found, recall=float(np.mean(shares)))


def large_engine(bench: Workbench) -> FullEngine:
    """An engine of the bench's settings over 100,000 items, each near one of its catalogue.

    Their vectors are made, as encoding so many texts takes minutes and costs a ranking nothing.
    """
    known, generator = bench.engine.runtime, bench.generator()
    made = tuple(Item(id=f"i{n}", title=f"Thing {n}", text=f"thing {n}") for n in range(ITEMS))
    runtime = Runtime(known.config, Catalogue(made))
    raw = raw_vectors(known.backbone, known.catalogue)
    noise = AROUND * raw.std(axis=0) * generator.standard_normal((ITEMS, raw.shape[1]), dtype=np.float32)
    model = known.config.model
    views = make_views(
        raw[generator.integers(0, len(raw), ITEMS)] + noise,
        whitening=model.whitening,
        output_dim=model.output_dim,
        output_scale=model.output_scale,
        identity=model.identity,
        content_whitening=model.content_whitening,
    )
    runtime.table = ItemTable(views)
    runtime.install(random_state(runtime, seed=bench.seed))
    return FullEngine(runtime, bench.history(0, generator))
