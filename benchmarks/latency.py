"""From an event to a new slate, one thread: what a person waits for. A markdown table; with --json FILE all figures.

    PYTHONPATH=. python benchmarks/latency.py --json latency.json

MovieLens 1M's catalogue (3,416 items) from HOMERANK_DATA, with the settings of the experiment `ml-1m`: default
backbone, two blocks with LoRA, 1,536 directions, a prior of three half-lives. Parameters are random, which costs the
same time. Histories hold 50 random events unless a row says otherwise. An event is recorded in the ranking state, all
items are scored anew and the 10 best unseen ones selected; writing to the store is not included. The last rows are the
exact product of random vectors with one state and the selection of the 100 best, as a larger catalogue needs them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.engine import Parts
from client.ranker import score_catalogue
from client.samples import seen_items
from client.session import Session
from client.slate import best_items
from client.store import History
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY
from shared.catalogue import Catalogue
from shared.config import Config, load_config
from shared.datasets import load_data
from shared.model import Stage
from shared.prior import PRIOR
from shared.runtime import Runtime
from shared.schema import Event, EventKind

EXPERIMENT = "simulations/experiments/ml-1m.toml"
EVENTS, SLATE = 50, 10
#: Rows of the larger catalogue, and the widths of vectors tried.
MANY, WIDTHS, BEST = 100_000, (64, 384), 100
WARM_UP = 5


def random_state(runtime: Runtime, *, seed: int) -> AdapterState:
    """An adapter of the right form."""
    generator = np.random.default_rng(seed)
    arrays = {name: array + generator.normal(0, 0.02, array.shape) for name, array in runtime.start.arrays.items()}
    arrays[POPULARITY] = generator.normal(size=len(runtime.catalogue))
    if (layout := runtime.scorer.layout) is not None:
        arrays[PRIOR] = generator.normal(0, 0.1, (layout.features, layout.output))
    return AdapterState(arrays)


def random_history(items: int, events: int, generator: np.random.Generator) -> History:
    """Clicks a minute apart on different items."""
    return History(
        items=generator.choice(items, size=events, replace=False).astype(np.int64),
        times=60.0 * np.arange(events),
        kinds=np.full(events, int(EventKind.CLICK)),
        roles=np.zeros(events, dtype=np.int64),
        values=np.full(events, np.nan),
    )


def slate(parts: Parts, seen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The best unseen items by the sum of the parts."""
    return best_items(sum(parts.values(), start=np.zeros(len(seen), dtype=np.float32)), ~seen, SLATE)


def session_cases(runtime: Runtime, *, stage: Stage, events: int, seed: int) -> Iterator[Callable[[], object]]:
    """Endless requests to a session that has ranked a history of `events` before each."""
    generator = np.random.default_rng(seed)
    session = Session(runtime, random_history(len(runtime.catalogue), events, generator))
    while True:
        session.replace(random_history(len(runtime.catalogue), events, generator))
        session.scores(stage=stage)
        event = Event(int(generator.integers(len(runtime.catalogue))), 60.0 * events, EventKind.CLICK)

        def request(event: Event = event) -> object:
            session.add(event)
            now = session.now
            return slate(now.scores(stage=stage), now.past.seen)

        yield request


def whole_cases(runtime: Runtime, *, seed: int) -> Iterator[Callable[[], object]]:
    """Endless requests that rank the whole history, the new event being its last, without any state."""
    generator = np.random.default_rng(seed)
    while True:
        history = random_history(len(runtime.catalogue), EVENTS + 1, generator)

        def request(history: History = history) -> object:
            seen = np.zeros(len(runtime.catalogue), dtype=np.bool_)
            seen[seen_items(history)] = True
            return slate({"all": score_catalogue(runtime, [history])[0]}, seen)

        yield request


def vector_cases(count: int, width: int, *, seed: int) -> Iterator[Callable[[], object]]:
    """Endless exact searches among random vectors, float32 (count, width)."""
    generator = np.random.default_rng(seed)
    vectors = torch.from_numpy(generator.standard_normal((count, width), dtype=np.float32))
    may = np.ones(count, dtype=np.bool_)
    while True:
        state = torch.from_numpy(generator.standard_normal(width, dtype=np.float32))
        yield lambda state=state: best_items((vectors @ state).numpy(), may, BEST)


def measure(cases: Iterator[Callable[[], object]], *, requests: int) -> dict[str, float]:
    """Milliseconds of each request, summed up."""
    taken = []
    for request in itertools.islice(cases, WARM_UP + requests):
        started = time.perf_counter()
        request()
        taken.append((time.perf_counter() - started) * 1e3)
    found = np.array(taken[WARM_UP:])
    quantiles = {f"p{q}": float(np.percentile(found, q)) for q in (50, 99)}
    return {**quantiles, "least": float(found.min()), "mean": statistics.fmean(found), "requests": requests}


def settings(experiment: str) -> tuple[Config, Catalogue]:
    """An experiment's configuration and the catalogue it is about."""
    config = load_config(experiment)
    folder = Path(config.data.source)
    if "HOMERANK_DATA" in os.environ:
        folder = Path(os.environ["HOMERANK_DATA"]) / folder.name
    return config, load_data(folder, min_item_count=config.data.min_item_count).catalogue


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for all figures")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    config, catalogue = settings(EXPERIMENT)
    runtime = Runtime(config, catalogue)
    runtime.install(random_state(runtime, seed=chosen.seed))
    full, seed = config.model.history, chosen.seed
    rows = {
        "everything, trunk continued": session_cases(runtime, stage="adapter", events=EVENTS, seed=seed),
        f"everything, window of {full} full: trunk reads all": session_cases(
            runtime, stage="adapter", events=full, seed=seed
        ),
        "everything, no state kept": whole_cases(runtime, seed=seed),
        "content + prior": session_cases(runtime, stage="prior", events=EVENTS, seed=seed),
        "content only": session_cases(runtime, stage="start", events=EVENTS, seed=seed),
        **{f"{MANY:,} vectors of {width}, exact": vector_cases(MANY, width, seed=seed) for width in WIDTHS},
    }
    print("| event to slate | p50 ms | p99 ms | least ms |\n|---|---|---|---|", flush=True)
    results: dict[str, Any] = {}
    for name, cases in rows.items():
        found = results[name] = measure(cases, requests=chosen.requests)
        print(f"| {name} | {found['p50']:.2f} | {found['p99']:.2f} | {found['least']:.2f} |", flush=True)
    load = os.getloadavg()[0]
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )
    print(f"\n{len(catalogue):,} items, {machine}, load {load:.1f}, {datetime.now(UTC):%Y-%m-%d}.")
    if chosen.json:
        about = {"items": len(catalogue), "machine": machine, "load": load, "date": f"{datetime.now(UTC):%Y-%m-%d}"}
        chosen.json.write_text(json.dumps({**about, "milliseconds": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
