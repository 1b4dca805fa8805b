"""Measuring a row: what a ranker's answers become, what is kept of them, and the process they come from."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client.samples import seen_items
from shared.config import override
from shared.errors import ConfigError, DataError, RunError
from shared.metrics import rank_of
from simulations import evaluation
from simulations.evaluation import Case, ranks_of, shown_items, validation_cases
from simulations.quality import harness
from simulations.quality.harness import Job, Measured, load_measured, measure, measure_row, settings_of
from simulations.quality.rows import ROWS, Row
from simulations.quality.slices import COLD_EVENTS, cut, withhold
from simulations.runfolder import RunFolder, prepare
from tests.simulations.tiny_runs import ITEMS, tiny_config, write_data

SETTINGS = {"row": "planted", "seed": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> RunFolder:
    """A prepared folder; nothing is trained. Tests only read it."""
    return prepare(tiny_config(tiny_data), tmp_path_factory.mktemp("harness") / "run")


class Oracle:
    """Knows every target; everything else scores by its index."""

    def scores(self, cases: Sequence[Case]) -> NDArray[np.float32]:
        rows = np.tile(np.arange(ITEMS, dtype=np.float32), (len(cases), 1))
        rows[np.arange(len(cases)), [case.target for case in cases]] = 1000
        return rows


class Flat:
    """Has no opinion."""

    def scores(self, cases: Sequence[Case]) -> NDArray[np.float32]:
        return np.zeros((len(cases), ITEMS), dtype=np.float32)


def row(ranker: Any, **settings: Any) -> Row:
    """A row that needs no fitting."""
    return Row(lambda run, training, seed: ranker, "nobody's data", **settings)


# --- lists -------------------------------------------------------------------------------------------------


def test_a_list_leaves_out_what_was_seen_and_breaks_ties_by_catalogue_order(run: RunFolder) -> None:
    case = evaluation.test_cases(run)[0]
    seen = seen_items(case.history)
    free = np.setdiff1d(np.arange(ITEMS), seen)
    scores = np.zeros(ITEMS, dtype=np.float32)
    scores[seen] = 9
    scores[free[4]] = 1
    scores[free[5]] = np.nan
    assert shown_items(scores, case, k=4).tolist() == [free[4], *free[:3]]
    everything = shown_items(scores, case, k=ITEMS)
    assert everything[len(free) - 1] == free[5]  # NaN is last
    assert everything[len(free) :].tolist() == [-1] * len(seen)


# --- a row -------------------------------------------------------------------------------------------------


def test_an_oracle_is_first_everywhere_and_a_flat_ranker_last(run: RunFolder) -> None:
    cases = evaluation.test_cases(run)
    best = measure_row(run, row(Oracle()), seed=0, settings=SETTINGS)
    assert best.cases.tolist() == list(range(len(cases)))
    assert best.full.tolist() == best.sampled.tolist() == [1] * len(cases)
    assert best.lists[:, 0].tolist() == [case.target for case in cases]
    assert {events: ranks.tolist() for events, ranks in best.cold.items()} == {
        events: [[1] * len(cases)] * 2 for events in COLD_EVENTS
    }
    worst = measure_row(run, row(Flat()), seed=0, settings=SETTINGS)
    assert worst.full.tolist() == [ITEMS - 7] * len(cases)
    assert worst.sampled.tolist() == [100] * len(cases)
    assert worst.cold[0][0].tolist() == [ITEMS] * len(cases)  # nothing is seen


def test_ranks_lists_and_cold_starts_are_those_of_the_rankers_own_scores(run: RunFolder) -> None:
    class Noisy:
        def scores(self, cases: Sequence[Case]) -> NDArray[np.float32]:
            seeds = [(case.user, len(case.history)) for case in cases]
            return np.stack([np.random.default_rng(seed).normal(size=ITEMS) for seed in seeds]).astype(np.float32)

    measured, cases = measure_row(run, row(Noisy()), seed=0, settings=SETTINGS), evaluation.test_cases(run)
    for place, case in enumerate(cases):
        scores = Noisy().scores([case])[0]
        assert measured.full[place] == rank_of(scores, case.target, removed=seen_items(case.history))
        assert (measured.full[place] <= harness.K) == (case.target in measured.lists[place])
        assert not set(measured.lists[place].tolist()) & set(case.history.items.tolist())
    short = cut(cases, 3)
    cold = ranks_of(short, Noisy().scores(short), seed=run.config.seed)
    np.testing.assert_array_equal(measured.cold[3], np.stack([cold.full, cold.sampled]))


def test_a_fit_is_given_training_events_and_validation_cases_and_its_seed(run: RunFolder) -> None:
    given: list[Any] = []

    def fit(found: RunFolder, training: Any, seed: int) -> Flat:
        given.extend([found, training, seed])
        return Flat()

    measured = measure_row(run, Row(fit, "one machine"), seed=7, settings=SETTINGS)
    folder, training, seed = given
    assert folder is run
    assert seed == 7
    assert training.items == ITEMS
    assert [len(history) for history in training.histories] == [6] * 12
    expected = [case.target for case in validation_cases(run, limit=99)]
    assert [case.target for case in training.validation] == expected
    assert measured.facts["trains_on"] == "one machine"
    assert measured.facts["settings"] == SETTINGS
    assert measured.facts["peak_rss_bytes"] > 10_000_000


def test_the_settings_that_were_chosen_are_kept(run: RunFolder) -> None:
    ranker = Flat()
    ranker.chosen = {"depth": 3.0}  # type: ignore[attr-defined]
    assert measure_row(run, row(ranker), seed=0, settings=SETTINGS).facts["chosen"] == {"depth": 3.0}


def test_a_slow_row_asks_some_devices_and_always_the_same(run: RunFolder) -> None:
    some = replace(run, config=override(run.config, "evaluation.local_only_users=5"))
    first = measure_row(some, row(Flat(), sampled=True), seed=0, settings=SETTINGS)
    again = measure_row(some, row(Oracle(), sampled=True), seed=1, settings=SETTINGS)
    assert len(set(first.cases.tolist())) == 5
    assert first.cases.tolist() == again.cases.tolist()
    targets = [evaluation.test_cases(some)[place].target for place in again.cases]
    assert again.lists[:, 0].tolist() == targets
    none = replace(run, config=override(run.config, "evaluation.local_only_users=0"))
    with pytest.raises(ConfigError, match="expected at least 1 device"):
        measure_row(none, row(Flat(), sampled=True), seed=0, settings=SETTINGS)


def test_a_row_that_knows_nobody_else_has_no_cold_start(run: RunFolder) -> None:
    assert measure_row(run, row(Flat(), newcomers=False), seed=0, settings=SETTINGS).cold == {}


def test_withheld_items_are_ranked_among_themselves(run: RunFolder, tmp_path: Path) -> None:
    items = np.unique(run.test)
    later = withhold(run, tmp_path / "new", items=items)
    assert measure_row(run, row(Oracle()), seed=0, settings=SETTINGS).new.tolist() == []
    found = measure_row(later, row(Oracle()), seed=0, settings=SETTINGS)
    assert found.new.tolist() == [1] * 12
    assert found.cold == {}
    assert measure_row(later, row(Flat()), seed=0, settings=SETTINGS).new.tolist() == [len(items)] * 12


def test_scores_of_another_catalogue_are_refused(run: RunFolder) -> None:
    class Short:
        def scores(self, cases: Sequence[Case]) -> NDArray[np.float32]:
            return np.zeros((len(cases), ITEMS - 1), dtype=np.float32)

    with pytest.raises(DataError, match=r"expected \(12, 120\)"):
        measure_row(run, row(Short()), seed=0, settings=SETTINGS)


def test_a_finished_run_costs_what_its_training_took(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"seconds": {"train": 841.0}, "peak_rss_bytes": 123}))
    facts = measure_row(run, row(Flat(), finished=tmp_path), seed=0, settings=SETTINGS).facts
    assert facts["seconds"]["fit"] == 841.0
    assert facts["seconds"]["rank"] < 10
    assert facts["peak_rss_bytes"] == 123


# --- files -------------------------------------------------------------------------------------------------


def test_a_row_is_read_back_as_it_was_saved(run: RunFolder, tmp_path: Path) -> None:
    place = tmp_path / "rows" / "planted" / "0"
    assert load_measured(place, SETTINGS) is None
    measured = measure_row(run, row(Oracle()), seed=0, settings=SETTINGS)
    measured.save(place)
    found = load_measured(place, SETTINGS)
    assert isinstance(found, Measured)
    assert found.facts == measured.facts
    for name in harness.COLUMNS:
        np.testing.assert_array_equal(getattr(found, name), getattr(measured, name))
    assert list(found.cold) == list(COLD_EVENTS)
    np.testing.assert_array_equal(found.cold[10], measured.cold[10])
    assert load_measured(place, {**SETTINGS, "seed": 1}) is None
    place.with_suffix(".npz").write_bytes(b"half")
    assert load_measured(place, SETTINGS) is None


def test_settings_follow_the_questions_and_the_adapter(run: RunFolder, tmp_path: Path) -> None:
    first = settings_of(Job(run.path, "popularity", (), 0, tmp_path))
    assert first == settings_of(Job(run.path, "popularity", (), 0, tmp_path))
    assert first != settings_of(Job(run.path, "markov", (), 0, tmp_path))
    assert first != settings_of(Job(run.path, "popularity", (), 1, tmp_path))
    other = prepare(tiny_config(write_data(tmp_path / "data", users=13)), tmp_path / "run")
    assert first != settings_of(Job(other.path, "popularity", (), 0, tmp_path))
    finished = tmp_path / "finished"
    (finished / "adapter").mkdir(parents=True)
    trained = settings_of(Job(run.path, "federated", (finished,), 0, tmp_path))
    (finished / "adapter" / "projections.safetensors").write_bytes(b"weights")
    assert trained != settings_of(Job(run.path, "federated", (finished,), 0, tmp_path))


# --- the process -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_row_is_measured_in_a_process_of_its_own_and_once(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(run.path, "popularity", (), 0, tmp_path)
    hoard = np.ones(300_000_000 // 8)  # the parent's memory is not the row's
    measured = measure(job)
    assert measured.facts["peak_rss_bytes"] < harness.peak_memory()
    assert len(hoard)
    here = measure_row(run, ROWS["popularity"], seed=0, settings=measured.facts["settings"])
    np.testing.assert_array_equal(measured.full, here.full)
    np.testing.assert_array_equal(measured.lists, here.lists)
    assert (tmp_path / "rows" / "popularity" / "0.json").is_file()
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: pytest.fail("it was measured again"))
    np.testing.assert_array_equal(measure(job).full, measured.full)


@pytest.mark.slow
def test_a_mistake_in_a_row_is_said_by_its_parent(run: RunFolder, tmp_path: Path) -> None:
    other = prepare(tiny_config(write_data(tmp_path / "data", users=13)), tmp_path / "run")
    with pytest.raises(RunError, match="other data or another split"):
        measure(Job(run.path, "federated", (other.path,), 0, tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("*.json"))
