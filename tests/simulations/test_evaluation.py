"""What is asked of a ranker, what it may know, and what stays out of training."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import client.trainer
from client.samples import seen_items, training_windows
from client.store import Role
from server.popularity import log_popularity
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, load_adapter
from shared.config import override
from shared.datasets import load_data, make_split
from shared.errors import DataError
from shared.runtime import Runtime, runtime_for
from shared.windows import IGNORE
from simulations import evaluation
from simulations.evaluation import (
    Alone,
    rank_by_popularity,
    rank_cases,
    rank_local_only,
    validation_cases,
    validation_cases_of,
)
from simulations.runfolder import RunFolder, prepare
from tests.simulations.tiny_runs import ITEMS, tiny_config, train_inline, write_data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> RunFolder:
    """A prepared folder; nothing is trained."""
    return prepare(tiny_config(tiny_data), tmp_path_factory.mktemp("evaluation") / "run")


@pytest.fixture(scope="module")
def runtime(run: RunFolder) -> Runtime:
    """A runtime of its own (the process-wide one may be replaced), with some popularity."""
    own = Runtime(run.config, run.catalogue)
    own.table.set_popularity(np.linspace(-1, 1, ITEMS).astype(np.float32))
    return own


def written(data: Path) -> dict[str, list[str]]:
    """Items of each user in the order of events.csv."""
    rows = [line.split(",") for line in (data / "events.csv").read_text().splitlines()[1:]]
    return {user: [item for name, item, *_ in rows if name == user] for user, *_ in rows}


# --- cases -------------------------------------------------------------------------------------------------


def test_only_so_many_devices_are_measured_as_are_asked_for(run: RunFolder) -> None:
    some = replace(run, config=override(run.config, "evaluation.test_users=5"))
    users = [case.user for case in evaluation.test_cases(some)]
    assert len(users) == 5
    assert users == sorted(users) == [case.user for case in evaluation.test_cases(some)]


def test_the_history_of_a_test_item_is_everything_before_it(run: RunFolder, tiny_data: Path) -> None:
    truth = written(tiny_data)
    cases = evaluation.test_cases(run)
    assert len(cases) == len(truth) == 12
    for case in cases:
        *before, last = truth[run.users[case.user]]
        assert [run.catalogue.items[item].id for item in case.history.items] == before
        assert run.catalogue.items[case.target].id == last
        assert case.history.roles.tolist() == [Role.TRAIN] * 6 + [Role.VALIDATE]


def test_the_history_of_a_validation_item_ends_before_it(run: RunFolder, tiny_data: Path) -> None:
    truth = written(tiny_data)
    cases = validation_cases(run, limit=100)
    assert len(cases) == 12
    for case in cases:
        items = truth[run.users[case.user]]
        assert [run.catalogue.items[item].id for item in case.history.items] == items[:-2]
        assert run.catalogue.items[case.target].id == items[-2]
    assert [case.user for case in validation_cases(run, limit=3)] == [case.user for case in cases[:3]]
    assert [case.user for case in validation_cases_of(run, [4, 2], limit=9)] == [4, 2]


def test_no_device_holds_a_test_item(run: RunFolder) -> None:
    held = sqlite3.connect(run.path / "devices.sqlite").execute("SELECT device, item, role FROM events").fetchall()
    assert len(held) == 12 * 7
    targets = {(user, run.catalogue.items[item].id) for user, item in enumerate(run.test.tolist())}
    assert not targets & {(device, item) for device, item, _ in held}


def test_devices_train_on_nothing_that_is_held_out(run: RunFolder, tiny_data: Path) -> None:
    truth, store = written(tiny_data), run.store()
    for user, name in enumerate(run.users):
        windows = training_windows(store.history(user, run.catalogue), length=run.config.model.history)
        used = set(windows.items[windows.real].tolist()) | set(windows.targets.flatten().tolist()) - {IGNORE}
        assert {run.catalogue.items[item].id for item in used} == set(truth[name][:-2])
    store.close()


def test_a_temporal_split_keeps_what_comes_later_off_the_devices(tmp_path: Path, tiny_data: Path) -> None:
    config = tiny_config(tiny_data, "data.split=temporal")
    later = prepare(config, tmp_path / "run")
    data = load_data(str(tiny_data))
    split = make_split(data, "temporal")
    store = later.store()
    for user in range(later.devices):
        history = store.history(user, later.catalogue)
        trained = history.items[history.roles == Role.TRAIN]
        assert len(trained) == split.train_end[user] - data.offsets[user]
        if later.test[user] >= 0:
            assert later.test[user] not in history.items
    store.close()
    assert (later.test >= 0).any()


def test_a_user_with_a_short_history_trains_and_is_not_asked(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", users=3, events=2)
    short = prepare(tiny_config(data), tmp_path / "run")
    assert (short.test == -1).all()
    assert sqlite3.connect(short.path / "devices.sqlite").execute("SELECT COUNT(*) FROM events").fetchone() == (6,)
    with pytest.raises(DataError, match="no user with enough events"):
        evaluation.test_cases(short)
    assert validation_cases(short, limit=5) == []


# --- ranks -------------------------------------------------------------------------------------------------


def test_seen_items_are_left_out_and_ties_count_against_the_target(run: RunFolder) -> None:
    cases = evaluation.test_cases(run)
    for case in cases:
        scores = np.zeros(ITEMS, dtype=np.float32)
        scores[case.history.items] = 9.0  # seen, hence out of the way
        assert len(seen_items(case.history)) == 7
        assert rank_by_popularity([case], scores, seed=0).full.tolist() == [ITEMS - 7]
        scores[case.target] = 1.0
        assert rank_by_popularity([case], scores, seed=0).full.tolist() == [1]


def test_held_out_items_stay_among_the_negatives(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the six training items and the target can be drawn; leaving out more is the leak."""
    drawn: list[set[int]] = []
    rank = evaluation.rank_among

    def watched(scores: Any, target: int, candidates: Any) -> int:
        drawn.append(set(candidates.tolist()))
        return rank(scores, target, candidates)

    monkeypatch.setattr(evaluation, "rank_among", watched)
    cases = evaluation.test_cases(run)
    for seed in range(40):
        rank_by_popularity(cases, np.zeros(ITEMS, dtype=np.float32), seed=seed)
    for number, case in enumerate(cases):
        mine = drawn[number :: len(cases)]
        assert {len(candidates) for candidates in mine} == {99}
        possible, trained = set.union(*mine), set(case.history.items[:6].tolist())
        assert possible == set(range(ITEMS)) - trained - {case.target}
        assert int(case.history.items[6]) in possible  # the validation item
        assert set(run.test.tolist()) - trained - {case.target} <= possible  # other people's test items


def test_every_ranker_meets_the_same_negatives(run: RunFolder) -> None:
    cases = evaluation.test_cases(run)
    scores = np.random.default_rng(0).normal(size=ITEMS).astype(np.float32)
    whole = rank_by_popularity(cases, scores, seed=3)
    alone = [rank_by_popularity([case], scores, seed=3).sampled[0] for case in cases[::-1]]
    assert whole.sampled.tolist() == alone[::-1]
    assert (whole.sampled <= 100).all()
    assert (whole.sampled <= whole.full).mean() > 0.5


def test_a_fresh_adapter_ranks_as_zero_shot(run: RunFolder, runtime: Runtime) -> None:
    cases = evaluation.test_cases(run)
    runtime.install(runtime.start)
    fresh = rank_cases(runtime, cases, seed=0)
    bare = rank_cases(runtime, cases, seed=0, stage="start")
    assert fresh.full.tolist() == bare.full.tolist()
    assert fresh.sampled.tolist() == bare.sampled.tolist()


def test_zero_shot_does_not_depend_on_what_was_learned(run: RunFolder, runtime: Runtime) -> None:
    cases = evaluation.test_cases(run)
    runtime.install(runtime.start)
    before = rank_cases(runtime, cases, seed=0, stage="start").full
    rng = np.random.default_rng(1)
    shaken = {name: rng.normal(size=array.shape).astype(np.float32) for name, array in runtime.start.arrays.items()}
    runtime.install(AdapterState(shaken))
    assert rank_cases(runtime, cases, seed=0, stage="start").full.tolist() == before.tolist()
    assert rank_cases(runtime, cases, seed=0).full.tolist() != before.tolist()
    runtime.install(runtime.start)


def test_ranks_do_not_depend_on_who_else_is_in_the_batch(run: RunFolder, runtime: Runtime) -> None:
    cases = evaluation.test_cases(run)
    together = rank_cases(runtime, cases, seed=0).full
    alone = [rank_cases(runtime, [case], seed=0).full[0] for case in cases]
    assert np.abs(together - alone).max() <= 1  # sums in another order may swap two neighbours


# --- training alone ----------------------------------------------------------------------------------------


def start_of(runtime: Runtime) -> AdapterState:
    return AdapterState({**runtime.start.arrays, POPULARITY: np.zeros(ITEMS, dtype=np.float32)})


def test_local_only_trains_and_leaves_no_trace(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = runtime_for(run.config, run.catalogue)
    start = start_of(runtime)
    runtime.install(start)
    cases = evaluation.test_cases(run)
    calls: list[dict[str, Any]] = []
    learn = client.trainer.train_locally

    def watched(scorer: Any, windows: Any, table: Any, **options: Any) -> AdapterState:
        change = learn(scorer, windows, table, **options)
        calls.append({"norm": change.norm(), "items": set(windows.items[windows.real].tolist()), **options})
        return change

    monkeypatch.setattr(evaluation, "train_locally", watched)
    before = rank_cases(runtime, cases, seed=0).full
    ranks = rank_local_only(runtime, cases, alone=Alone(start, participations=5, noise=0.0), seed=0)
    assert len(calls) == 5 * len(cases)
    assert all(call["norm"] > 0 for call in calls)
    for call, case in zip(calls[::5], cases, strict=True):
        assert call["items"] == set(case.history.items[:6].tolist())
    assert len({call["seed"] for call in calls}) == len(calls)
    assert ranks.full.tolist() != before.tolist()
    assert rank_cases(runtime, cases, seed=0).full.tolist() == before.tolist()


def test_alone_with_privacy_a_device_adds_all_the_noise_itself(run: RunFolder) -> None:
    runtime = runtime_for(run.config, run.catalogue)
    cases = evaluation.test_cases(run)[:2]
    start = start_of(runtime)
    quiet = rank_local_only(runtime, cases, alone=Alone(start, participations=2, noise=0.0), seed=0)
    loud = rank_local_only(runtime, cases, alone=Alone(start, participations=2, noise=50.0), seed=0)
    assert quiet.full.tolist() != loud.full.tolist()


# --- popularity --------------------------------------------------------------------------------------------


def exact_popularity(run: RunFolder) -> np.ndarray:
    """What somebody with all events would compute."""
    store, counts = run.store(), np.zeros(len(run.catalogue))
    for user in range(run.devices):
        history = store.history(user, run.catalogue)
        np.add.at(counts, history.items[history.roles == Role.TRAIN], 1)
    store.close()
    return log_popularity(counts, noise_std=0.0)


def test_popularity_is_exact_only_without_privacy(tmp_path: Path, tiny_data: Path) -> None:
    plain, _ = train_inline(tiny_config(tiny_data, "federation.rounds=0"), tmp_path / "plain")
    private, _ = train_inline(
        tiny_config(tiny_data, "federation.rounds=0", "privacy.mode=event", "privacy.epsilon=500"), tmp_path / "private"
    )
    _, released, _ = load_adapter(plain.path / "adapter")
    np.testing.assert_allclose(released, exact_popularity(plain), atol=1e-5)
    _, noisy, _ = load_adapter(private.path / "adapter")
    # Exact counts of 72 clicks give a handful of values; noise separates items that were clicked equally often.
    assert len(np.unique(released)) < 8
    assert len(np.unique(noisy)) > ITEMS / 2


def test_the_simulator_ranks_by_the_popularity_that_was_released(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simulations import experiment

    run, _ = train_inline(tiny_config(tiny_data, "privacy.mode=event"), tmp_path / "run")
    asked: list[np.ndarray] = []
    rank = experiment.rank_by_popularity

    def watched(cases: Any, popularity: Any, *, seed: int) -> Any:
        asked.append(popularity)
        return rank(cases, popularity, seed=seed)

    monkeypatch.setattr(experiment, "rank_by_popularity", watched)
    experiment.evaluate(run, seconds={})
    _, released, _ = load_adapter(run.path / "adapter")
    assert len(asked) == 1
    assert np.array_equal(asked[0], released)
    installed = runtime_for(run.config, run.catalogue).table.rows[:, -1].numpy()
    assert np.array_equal(installed, released)
    assert json.loads((run.path / "result.json").read_text())["metrics"]["popularity"]["hr@10"] >= 0
