"""Measuring one row: fit, rank every test case, and keep what the figures need, each row in a process of its own.

    OUT/rows/NAME/SEED.npz   per case: ranks, lists, ranks after a cold start
    OUT/rows/NAME/SEED.json  seconds, peak memory, chosen settings, and what was asked

A row whose files are there and were made from the same questions is not measured again; delete its folder to do so.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.artifacts import write_json
from shared.config import to_toml
from shared.errors import ConfigError, DataError, HomerankError, RunError
from shared.metrics import rank_among
from shared.transfer import FOLDER as START
from simulations.evaluation import (
    Case,
    batches,
    ranks_of,
    shown_items,
    test_cases,
    validation_cases,
)
from simulations.quality.base import Ranker, training_of
from simulations.quality.rows import Row, rows_with
from simulations.quality.slices import COLD_EVENTS, cut, withheld_items
from simulations.runfolder import RunFolder, open_run

#: Length of the lists that are measured.
K = 10
#: Arrays of `Measured` that every row has.
COLUMNS = ("cases", "full", "sampled", "lists", "new")
#: Validation cases that rankers may tune on.
MOST_VALIDATION = 1000


@dataclass(frozen=True)
class Job:
    """What a child process is told. run: prepared folder. out: folder of the benchmark."""

    run: Path
    name: str
    finished: tuple[Path, ...]
    seed: int
    out: Path

    @property
    def place(self) -> Path:
        """The row's files without their ending."""
        return self.out / "rows" / self.name / str(self.seed)


@dataclass(frozen=True)
class Measured:
    """A row as it was measured.

    facts: settings, chosen, seconds (CPU), peak_rss_bytes. cases: which of all test cases, int64 (U,). full, sampled:
    ranks, int64 (U,). lists: int64 (U, K). new: ranks among the withheld items, int64 (U,), or empty when none is.
    cold: events left -> ranks (2, U), full and sampled; empty for a row that cannot rank for newcomers, and where items
    are withheld.
    """

    facts: dict[str, Any]
    cases: NDArray[np.int64]
    full: NDArray[np.int64]
    sampled: NDArray[np.int64]
    lists: NDArray[np.int64]
    new: NDArray[np.int64]
    cold: dict[int, NDArray[np.int64]]

    def save(self, place: Path) -> None:
        """Write both files; the object last, because it says that the row is whole."""
        place.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {f"cold_{events}": ranks for events, ranks in self.cold.items()}
        arrays |= {name: getattr(self, name) for name in COLUMNS}
        with place.with_suffix(".npz").open("wb") as handle:
            np.savez(handle, **arrays)
        write_json(place.with_suffix(".json"), self.facts)


def load_measured(place: Path, settings: dict[str, Any]) -> Measured | None:
    """What `save` wrote, None when there is nothing, nothing usable, or a row of other settings."""
    try:
        facts = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
        if facts["settings"] != settings:
            return None
        with np.load(place.with_suffix(".npz"), allow_pickle=False) as arrays:
            cold = {int(name.removeprefix("cold_")): arrays[name] for name in arrays if name.startswith("cold_")}
            columns = {name: arrays[name] for name in COLUMNS}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Measured(facts=facts, cold=cold, **columns)


def settings_of(job: Job) -> dict[str, Any]:
    """What a row depends on: the questions, and the adapter of a finished run or the one that a run starts from."""
    run, finished = open_run(job.run), rows_with(job.finished)[job.name].finished
    store = run.store()
    digest = hashlib.sha256(f"{run.catalogue.fingerprint} {store.count()} {to_toml(run.config)}".encode())
    store.close()
    digest.update(run.test.tobytes())
    files = sorted((finished / "adapter" if finished else run.path / START).glob("*.safetensors"))
    adapter = hashlib.sha256()
    for path in files:
        adapter.update(path.read_bytes())
    return {
        "row": job.name,
        "seed": job.seed,
        "questions": digest.hexdigest()[:16],
        "adapter": adapter.hexdigest()[:16] if files else None,
    }


# --- in the child ------------------------------------------------------------------------------------------


def measure_row(run: RunFolder, row: Row, *, seed: int, settings: dict[str, Any]) -> Measured:
    """Fit the row and rank its cases, whole and after a cold start. seed: the fit's; negatives take the run's."""
    training = training_of(run, validation=validation_cases(run, limit=MOST_VALIDATION))
    cases, asked = _asked(run, row)
    started = time.process_time()
    ranker = row.fit(run, training, seed)
    fitted = time.process_time() - started
    withheld = withheld_items(run)
    lists: list[NDArray[np.int64]] = []
    new: list[int] = []
    watch = Watched(ranker, training.items)

    def listed() -> Iterator[NDArray[np.float32]]:
        for case, scores in zip(cases, watch.rows(cases), strict=True):
            lists.append(shown_items(scores, case, k=K))
            if len(withheld):
                new.append(rank_among(scores, case.target, withheld))
            yield scores

    ranks = ranks_of(cases, listed(), seed=run.config.seed)
    seconds = {"fit": round(fitted, 2), "rank": round(watch.seconds, 2)}
    cold = {}
    for events in COLD_EVENTS if row.newcomers and not len(withheld) else ():
        left = ranks_of(cut(cases, events), watch.rows(cut(cases, events)), seed=run.config.seed)
        cold[events] = np.stack([left.full, left.sampled])
    facts = {
        "settings": settings,
        "trains_on": row.trains_on,
        "chosen": dict(getattr(ranker, "chosen", {})),
        "seconds": seconds,
        "peak_rss_bytes": peak_memory(),
    }
    if row.finished:
        facts |= _spent_on_training(row.finished, seconds)
    ranked = {"cases": asked, "full": ranks.full, "sampled": ranks.sampled, "lists": np.stack(lists)}
    return Measured(facts=facts, new=np.array(new, dtype=np.int64), cold=cold, **ranked)


class Watched:
    """A ranker whose answers are checked and whose CPU seconds are counted."""

    def __init__(self, ranker: Ranker, items: int) -> None:
        self.seconds = 0.0
        self._ranker = ranker
        self._items = items

    def rows(self, cases: Sequence[Case]) -> Iterator[NDArray[np.float32]]:
        """Scores of all items, one float32 (N,) for each case."""
        for batch in batches(cases):
            started = time.process_time()
            scores = self._ranker.scores(batch)
            self.seconds += time.process_time() - started
            if scores.shape != (len(batch), self._items):
                raise DataError(f"ranker: found scores of shape {scores.shape}; expected {(len(batch), self._items)}")
            yield from scores


def peak_memory() -> int:
    """Most bytes this process has held; not what its parent held, which Linux adds to the usual figure."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _asked(run: RunFolder, row: Row) -> tuple[list[Case], NDArray[np.int64]]:
    """The cases a row is asked, and their places among all test cases."""
    cases = test_cases(run)
    if not row.sampled:
        return cases, np.arange(len(cases))
    count = run.config.evaluation.local_only_users
    if count < 1:
        raise ConfigError("found evaluation.local_only_users = 0; expected at least 1 device to train alone")
    chosen = np.sort(np.random.default_rng((run.config.seed, 11)).permutation(len(cases))[:count])
    return [cases[place] for place in chosen.tolist()], chosen


def _spent_on_training(finished: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """Seconds (of the clock, not of the CPU) and peak memory that the finished run recorded, where it did."""
    try:
        result = json.loads((finished / "result.json").read_text(encoding="utf-8"))
        spent = {**seconds, "fit": result["seconds"]["train"]}
        return {"seconds": spent, "peak_rss_bytes": result["peak_rss_bytes"]}
    except (OSError, ValueError, KeyError):
        return {}


# --- in the parent -----------------------------------------------------------------------------------------


def measure(job: Job) -> Measured:
    """The row of a job: read when it was measured before, else measured in a fresh process and saved.

    Errors of the row are raised here. RunError when the process ends without an answer.
    """
    settings = settings_of(job)
    if (known := load_measured(job.place, settings)) is not None:
        return known
    context = multiprocessing.get_context("spawn")  # a fork would count the parent's memory
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, job, settings), daemon=True)
    process.start()
    sender.close()
    try:
        error = receiver.recv()
    except EOFError:
        process.join()
        error = RunError(f"row {job.name}: its process ended with code {process.exitcode}; see the lines above")
    finally:
        process.terminate()
        process.join()
        receiver.close()
    if error is not None:
        raise error
    measured = load_measured(job.place, settings)
    if measured is None:
        raise RunError(f"{job.place}: found no usable files after measuring; make room and try again")
    return measured


def _child(sender: Connection, job: Job, settings: dict[str, Any]) -> None:
    """Measure, save, and send None or the error a person can act on."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        row = rows_with(job.finished)[job.name]
        measure_row(open_run(job.run), row, seed=job.seed, settings=settings).save(job.place)
        sender.send(None)
    except HomerankError as error:
        sender.send(error)
