"""Measuring rankers on virtual devices' test items. Nothing here flows back into training.

For the test item the history is everything before it, the validation item included, and all of it is removed from
the ranking. Ties count against the target.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.ranker import score_catalogue
from client.samples import seen_items, training_windows
from client.store import History, Role
from client.trainer import Step, train_locally
from server.optimiser import ServerOptimiser
from shared.adapter import AdapterState
from shared.errors import DataError
from shared.metrics import draw_negatives, negatives_generator, rank_among, rank_of
from shared.model import Stage, load_parameters, read_parameters, trainable
from shared.runtime import Runtime
from simulations.runfolder import RunFolder

BATCH = 64


@dataclass(frozen=True)
class Case:
    """One question: which rank does `target` get after `history`? `user` is the device number."""

    user: int
    history: History
    target: int
    training_items: NDArray[np.int64]


@dataclass(frozen=True)
class Ranks:
    """Ranks by user in the order of the cases, int64 (U,): in the whole catalogue and among 99 negatives."""

    full: NDArray[np.int64]
    sampled: NDArray[np.int64]


def test_cases(run: RunFolder) -> list[Case]:
    """All devices with a test target, or a fixed random sample of them when the configuration limits it."""
    store = run.store()
    cases = []
    users = np.flatnonzero(run.test >= 0)
    if 0 < run.config.evaluation.test_users < len(users):
        users = np.random.default_rng((run.config.seed, 5)).permutation(users)[: run.config.evaluation.test_users]
    for user in np.sort(users).tolist():
        history = store.history(user, run.catalogue)
        cases.append(Case(user, history, int(run.test[user]), _training_items(history)))
    store.close()
    if not cases:
        raise DataError("found no user with enough events for a test item; expected at least one with 3 new items")
    return cases


def validation_cases(run: RunFolder, *, limit: int) -> list[Case]:
    """A fixed random sample of devices with a validation target; what the quality curve is drawn from."""
    order = np.random.default_rng((run.config.seed, 7)).permutation(run.devices)
    return validation_cases_of(run, order.tolist(), limit=limit)


def validation_cases_of(run: RunFolder, devices: Sequence[int], *, limit: int) -> list[Case]:
    """The first `limit` of the given devices that have a validation target."""
    store = run.store()
    cases: list[Case] = []
    for user in devices:
        history = store.history(user, run.catalogue)
        held_out = np.flatnonzero(history.roles == Role.VALIDATE)
        if len(held_out):
            target = int(held_out[-1])
            cases.append(Case(user, history[:target], int(history.items[target]), _training_items(history)))
        if len(cases) == limit:
            break
    store.close()
    return cases


def rank_cases(runtime: Runtime, cases: Sequence[Case], *, seed: int, stage: Stage = "adapter") -> Ranks:
    """Ranks with what is installed in the runtime; stage `start` measures zero-shot (content + popularity)."""
    scores = (
        row
        for batch in batches(cases)
        for row in score_catalogue(runtime, [case.history for case in batch], stage=stage)
    )
    return ranks_of(cases, scores, seed=seed)


def rank_by_popularity(cases: Sequence[Case], popularity: NDArray[np.float32], *, seed: int) -> Ranks:
    """Ranks when everybody gets the released popularity."""
    return ranks_of(cases, (popularity for _ in cases), seed=seed)


@dataclass(frozen=True)
class Alone:
    """How a device trains when it trains alone.

    start: adapter with popularity. participations: training steps it gets, as many as in the federation.
    noise: multiplier z it must add itself to meet the same epsilon, as nobody else's noise helps it.
    factor: on the server's learning rate.
    """

    start: AdapterState
    participations: int
    noise: float
    factor: float = 1.0


def rank_local_only(runtime: Runtime, cases: Sequence[Case], *, alone: Alone, seed: int) -> Ranks:
    """Ranks when each case's device trains alone and then ranks with what it learned."""
    scores = (score_alone(runtime, case, alone=alone, seed=seed) for case in cases)
    return ranks_of(cases, scores, seed=seed)


def score_alone(runtime: Runtime, case: Case, *, alone: Alone, seed: int) -> NDArray[np.float32]:
    """Scores of all items, float32 (N,), by what this case's device learns alone; leaves the start installed."""
    config = runtime.config
    step = Step(
        steps=config.training.local_steps,
        learning_rate=config.training.local_learning_rate,
        sample_rate=config.training.window_sample_rate,
        noise_multiplier=alone.noise,
        clip_norm=config.training.clip_norm if alone.noise else math.inf,
        names=tuple(trainable(runtime.scorer)),
    )
    runtime.install(alone.start)
    windows = training_windows(case.history, length=config.model.history)
    optimiser = ServerOptimiser.from_config(config.federation)
    state = AdapterState(read_parameters(runtime.scorer))
    for number in range(alone.participations):
        change = train_locally(runtime.scorer, windows, runtime.table, step=step, seed=_stream(seed, case.user, number))
        state = optimiser.apply(state, change, factor=alone.factor)
        load_parameters(runtime.scorer, state.arrays)
    scores = score_catalogue(runtime, [case.history])[0]
    runtime.install(alone.start)
    return scores


def _stream(seed: int, user: int, number: int) -> int:
    return int(np.random.SeedSequence((seed, user, number)).generate_state(1, np.uint64)[0] >> 1)


def ranks_of(cases: Sequence[Case], scores: Iterable[NDArray[np.float32]], *, seed: int) -> Ranks:
    """Ranks from scores of all items, one float32 (N,) for each case; `seed` draws the negatives."""
    full, sampled = [], []
    for case, row in zip(cases, scores, strict=True):
        full.append(rank_of(row, case.target, removed=seen_items(case.history)))
        negatives = draw_negatives(
            negatives_generator(seed, case.user),
            count_items=len(row),
            training_items=case.training_items,
            target=case.target,
        )
        sampled.append(rank_among(row, case.target, negatives))
    return Ranks(np.array(full, dtype=np.int64), np.array(sampled, dtype=np.int64))


def shown_items(scores: NDArray[np.floating], case: Case, *, k: int) -> NDArray[np.int64]:
    """The k best unseen items (k,), best first, -1 where too few are left.

    Ties go to the item that comes first in the catalogue, as on the device; NaN comes last.
    """
    unseen = np.ones(len(scores), dtype=np.bool_)
    unseen[seen_items(case.history)] = False
    left = np.flatnonzero(unseen)
    best = left[np.argsort(-scores[left], kind="stable")[:k]]
    return np.concatenate([best, np.full(k - len(best), -1)]).astype(np.int64)


def _training_items(history: History) -> NDArray[np.int64]:
    return np.unique(history.items[history.roles == Role.TRAIN])


def batches(cases: Sequence[Case]) -> Iterator[Sequence[Case]]:
    """The cases in pieces of at most `BATCH`."""
    for start in range(0, len(cases), BATCH):
        yield cases[start : start + BATCH]
