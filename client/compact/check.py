"""An exported model beside the full one: does it rank alike, how fast, and in how many bytes.

Histories to compare on are drawn from the full model itself (`client.compact.distil`), with another seed than the
student was fitted with; quality is measured on held-out events where there are any. Milliseconds are from an event to
a new slate of ten, one thread, after a history of `EVENTS`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.compact.distil import draw_histories
from client.compact.engine import CompactEngine
from client.compact.export import Kind
from client.compact.folder import ModelFolder
from client.compact.readers import STUDENT, STUDENT_ARRAYS, TOKENS, TRUNK
from client.engine import Engine
from client.full import FullEngine
from client.samples import seen_items
from client.slate import best_items
from client.store import History, Role, Store
from shared.catalogue import Catalogue
from shared.metrics import ndcg, rank_of
from shared.runtime import Runtime
from shared.schema import Event, EventKind

EVENTS, SLATE, WARM_UP = 50, 10, 5
#: Least mean overlap of the ten best with the full model's, and least share of its NDCG@10.
LEAST_OVERLAP: dict[Kind, float] = {"int8": 0.85, "student": 0.5}
LEAST_NDCG: dict[Kind, float] = {"int8": 0.98, "student": 0.95}
#: People from whom on NDCG@10 says enough to refuse a model by it.
LEAST_PEOPLE = 200
#: The other kind's files, which a device of one kind does not need.
ONLY = {"int8": {TRUNK, TOKENS}, "student": {STUDENT, STUDENT_ARRAYS}}


@dataclass(frozen=True)
class HeldOut:
    """One person's history and the item that came next."""

    history: History
    target: int


def held_out(store: Path, catalogue: Catalogue, *, limit: int, seed: int = 0) -> list[HeldOut]:
    """Validation events of devices in a store, of at most `limit` devices drawn at random; none of theirs after it."""
    opened = Store(store, durable=False)
    devices = [row[0] for row in opened.read("SELECT DISTINCT device FROM events ORDER BY device")]
    found: list[HeldOut] = []
    for place in np.random.default_rng(seed).permutation(len(devices)).tolist():
        if len(found) == limit:
            break
        history = opened.history(devices[place], catalogue)
        places = np.flatnonzero(history.roles == Role.VALIDATE)
        if len(places) and places[-1] > 0:
            found.append(HeldOut(history[: places[-1]], int(history.items[places[-1]])))
    opened.close()
    return [case for case in found if case.target not in seen_items(case.history)]


def compare(
    runtime: Runtime, folder: ModelFolder, *, cases: Sequence[HeldOut] = (), histories: int = 100, requests: int = 200
) -> dict[str, dict[str, float]]:
    """Figures by name for `full` and each kind in the folder.

    bytes, p50_ms, p99_ms; for exported kinds overlap10 (mean share of the full model's ten best) and max_difference (of
    a score, less its mean over items); with cases ndcg10, and of_full, its share of the full model's.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sampled = list(_sampled(runtime, histories))
        full: Engine = FullEngine(runtime, sampled[0])
        expected = [_ranked(full, history) for history in sampled]
        figures = {"full": {"bytes": float(_full_bytes(runtime)), **_timed(full, requests)}}
        if cases:
            figures["full"] |= {"ndcg10": quality(full, cases), "people": float(len(cases))}
        for kind in folder.manifest["kinds"]:
            engine = CompactEngine.open(folder.path, runtime.catalogue, sampled[0], kind=kind)
            found = [_ranked(engine, history) for history in sampled]
            shared = [len(set(a[0]) & set(b[0])) / len(a[0]) for a, b in zip(expected, found, strict=True)]
            apart = [float(np.abs(a[1] - b[1]).max()) for a, b in zip(expected, found, strict=True)]
            figures[kind] = {
                "bytes": float(kind_bytes(folder, kind)),
                **_timed(engine, requests),
                "overlap10": float(np.mean(shared)),
                "max_difference": max(apart),
            }
            if cases:
                figures[kind]["ndcg10"] = quality(engine, cases)
                figures[kind]["of_full"] = figures[kind]["ndcg10"] / max(figures["full"]["ndcg10"], 1e-12)
        return figures
    finally:
        torch.set_num_threads(threads)


def failures(figures: dict[str, dict[str, float]]) -> list[str]:
    """What an exported model falls short of, in words; empty when it may be used."""
    found = []
    known = figures["full"].get("people", 0) >= LEAST_PEOPLE
    for kind, least in LEAST_OVERLAP.items():
        own = figures.get(kind, {})
        if own.get("overlap10", 1.0) < least:
            found.append(f"{kind}: {own['overlap10']:.3f} of the ten best are the full model's; expected {least}")
        if known and own.get("of_full", 1.0) < LEAST_NDCG[kind]:
            found.append(f"{kind}: {own['of_full']:.3f} of the full model's NDCG@10; expected {LEAST_NDCG[kind]}")
    return found


def kind_bytes(folder: ModelFolder, kind: str) -> int:
    """Bytes of the files that one kind needs."""
    others = {name for other, names in ONLY.items() if other != kind for name in names}
    return sum(int(about["bytes"]) for name, about in folder.manifest["files"].items() if name not in others)


def quality(engine: Engine, cases: Sequence[HeldOut]) -> float:
    """Mean NDCG@10 in the whole catalogue, seen items left out."""
    return float(ndcg(np.array([rank(engine, case) for case in cases]), 10).mean())


def rank(engine: Engine, case: HeldOut) -> int:
    """Rank of a case's target."""
    engine.replace(case.history)
    return rank_of(_total(engine), case.target, removed=seen_items(case.history))


def timings(engine: Engine, *, requests: int, seed: int = 0) -> NDArray[np.float64]:
    """Milliseconds from an event to a new slate of ten, (requests,)."""
    generator = np.random.default_rng(seed)
    items, taken = len(engine.catalogue), []
    for _ in range(WARM_UP + requests):
        engine.replace(_clicks(generator.choice(items, size=min(EVENTS, items - 1, engine.length - 1), replace=False)))
        _total(engine)
        event = Event(int(generator.integers(items)), float("nan"), EventKind.CLICK)
        started = time.perf_counter()
        engine.add(event)
        best_items(_total(engine), ~engine.now.past.seen, SLATE)
        taken.append((time.perf_counter() - started) * 1e3)
    return np.array(taken[WARM_UP:])


def _timed(engine: Engine, requests: int) -> dict[str, float]:
    found = timings(engine, requests=requests)
    return {f"p{quantile}_ms": float(np.percentile(found, quantile)) for quantile in (50, 99)}


def _ranked(engine: Engine, history: History) -> tuple[list[int], NDArray[np.float32]]:
    """The ten best unseen items, and all scores less their mean."""
    engine.replace(history)
    scores = _total(engine)
    return best_items(scores, ~engine.now.past.seen, SLATE).tolist(), scores - scores.mean()


def _total(engine: Engine) -> NDArray[np.float32]:
    parts = engine.now.scores()
    return np.sum(list(parts.values()), axis=0)


def _sampled(runtime: Runtime, count: int) -> Iterator[History]:
    """Drawn histories of 1 to L events, always leaving items to rank."""
    generator = np.random.default_rng((runtime.config.seed, 1))
    drawn = draw_histories(runtime.scorer, runtime.table, generator, count=count)
    longest = min(drawn.items.shape[1], max(1, len(runtime.catalogue) - SLATE))
    for items, size in zip(drawn.items, generator.integers(1, longest + 1, size=count).tolist(), strict=True):
        yield _clicks(items[:size])


def _clicks(items: NDArray[np.int64]) -> History:
    size = len(items)
    return History(
        items=items.astype(np.int64),
        times=np.full(size, np.nan),
        kinds=np.full(size, int(EventKind.CLICK)),
        roles=np.zeros(size, dtype=np.int64),
        values=np.full(size, np.nan),
    )


def _full_bytes(runtime: Runtime) -> int:
    """Backbone, adapter and the catalogue's vectors, which the full model starts from."""
    path = runtime.backbone.path
    weights = 0 if path is None else sum(file.stat().st_size for file in path.glob("*.safetensors"))
    prior = runtime.scorer.prior
    own = runtime.start.size + (0 if prior is None else prior.numel()) + runtime.table.plain.numel()
    return weights + 4 * own
