"""Federated factors: which negatives may be drawn, what a round averages, and what stays on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulations.evaluation import Case
from simulations.quality import federated_factors
from simulations.quality.base import Training
from simulations.quality.federated_factors import (
    FEDMF_GRID,
    PFEDREC_GRID,
    FederatedFactors,
    Federation,
    Personal,
    Samples,
    Settings,
    draw_samples,
    fit_fedmf,
    fit_pfedrec,
    run_round,
)
from tests.simulations.quality.test_classical import case, checkerboard, ranks, training

QUICK = {"width": 4, "cohort": 8, "negatives": 1, "item_rate": 20.0, "passes": 40, "patience": 40}
FEDMF = replace(FEDMF_GRID[0], **QUICK)
PFEDREC = replace(PFEDREC_GRID[0], **QUICK)
BOTH: list[tuple[Callable[..., FederatedFactors], Settings]] = [(fit_fedmf, FEDMF), (fit_pfedrec, PFEDREC)]


def federation(*, devices: int = 3, items: int = 6, width: int = 4) -> Federation:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((items + devices, width), dtype=np.float32)
    return Federation(rows[:items], tuple(Personal(row) for row in rows[items:]))


# --- negatives ---------------------------------------------------------------------------------------------


def test_negatives_are_everything_but_the_devices_own_items() -> None:
    own, drawn = np.array([0, 3, 4, 9]), set()
    for seed in range(60):
        samples = draw_samples(own, catalogue=11, negatives=1, rng=np.random.default_rng(seed))
        assert samples.items[:4].tolist() == own.tolist()
        assert samples.labels.tolist() == [1] * 4 + [0] * 4
        assert len(set(samples.items.tolist())) == 8
        drawn |= set(samples.items[4:].tolist())
    assert drawn == set(range(11)) - {0, 3, 4, 9}


@pytest.mark.parametrize(("own", "negatives"), [([0, 1, 2], 1), ([1, 2], 5), ([0, 1, 2, 3], 2)])
def test_when_fewer_are_left_than_asked_for_all_are_drawn(own: list[int], negatives: int) -> None:
    samples = draw_samples(np.array(own), catalogue=4, negatives=negatives, rng=np.random.default_rng(0))
    assert sorted(samples.items[samples.labels == 0].tolist()) == sorted(set(range(4)) - set(own))


@pytest.mark.parametrize(("fit", "settings"), BOTH)
def test_held_out_items_are_ordinary_negatives_in_training(
    fit: Callable[..., Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device of item 0 holds out item 1 for validation and item 2 for the test; leaving those out is the leak."""
    drawn: set[int] = set()
    draw = federated_factors.draw_samples

    def watched(own: Any, **options: Any) -> Samples:
        samples = draw(own, **options)
        assert samples.items[samples.labels == 1].tolist() == [0]
        drawn.update(samples.items[samples.labels == 0].tolist())
        return samples

    monkeypatch.setattr(federated_factors, "draw_samples", watched)
    data = training([0], items=5, validation=[case(0, [0], 1)])
    fit(data, seed=0, grid=(settings,))
    assert drawn == {1, 2, 3, 4}


# --- a round -----------------------------------------------------------------------------------------------


def loss(personal: Personal, items: np.ndarray, samples: Samples) -> float:
    """Mean binary cross-entropy in float64."""
    logits = items[samples.items].astype(np.float64) @ personal.weights.astype(np.float64) + personal.bias
    return float(np.mean(np.logaddexp(0, logits) - samples.labels * logits))


def test_steps_follow_the_gradient_of_the_mean_binary_cross_entropy() -> None:
    start = federation()
    samples = Samples(np.array([0, 2, 5]), np.array([1, 0, 0], dtype=np.float32))
    rows, personal = start.items[samples.items], replace(start.personal[0], bias=0.3)
    by_item = federated_factors._item_gradients(personal, rows, samples.labels)
    settings = replace(PFEDREC, personal_steps=1, personal_rate=1.0, ridge=0.0)
    moved = federated_factors._personalise(personal, rows, samples.labels, settings=settings)
    small = 1e-3
    for axis in range(4):
        nudge = small * np.eye(4, dtype=np.float32)[axis]
        items = start.items.copy()
        items[2] += nudge
        slope = (loss(personal, items, samples) - loss(personal, start.items, samples)) / small
        assert by_item[1, axis] == pytest.approx(slope, abs=2e-3)
        further = replace(personal, weights=personal.weights + nudge)
        slope = (loss(further, start.items, samples) - loss(personal, start.items, samples)) / small
        assert (personal.weights - moved.weights)[axis] == pytest.approx(slope, abs=2e-3)
    slope = (
        loss(replace(personal, bias=0.3 + small), start.items, samples) - loss(personal, start.items, samples)
    ) / small
    assert personal.bias - moved.bias == pytest.approx(slope, abs=2e-3)
    assert federated_factors._personalise(personal, rows, samples.labels, settings=FEDMF).bias == 0.3


def test_the_ridge_pulls_the_weights_to_zero() -> None:
    personal, nothing = Personal(np.ones(4, dtype=np.float32)), np.zeros((1, 4), dtype=np.float32)
    settings = replace(FEDMF, ridge=0.1, personal_rate=2.0, personal_steps=2)
    moved = federated_factors._personalise(personal, nothing, np.ones(1, dtype=np.float32), settings=settings)
    np.testing.assert_allclose(moved.weights, 0.8**2, rtol=1e-6)


def test_item_vectors_are_the_mean_of_the_cohorts_copies() -> None:
    """With negatives that cover the catalogue nothing is random, so devices can be run one by one."""
    start, own = federation(), {0: np.array([0, 1]), 2: np.array([4])}
    settings = replace(FEDMF, negatives=9)

    def after(cohort: dict[int, np.ndarray]) -> Federation:
        return run_round(start, cohort, settings=settings, rng=np.random.default_rng(0))

    both = after(own)
    copies = [after({device: items}).items for device, items in own.items()]
    np.testing.assert_allclose(both.items, (copies[0] + copies[1]) / 2, rtol=1e-5, atol=1e-6)
    assert not np.allclose(copies[0], copies[1])


def test_only_the_cohort_changes_and_only_its_samples_move() -> None:
    start = federation(items=30)
    settings = replace(FEDMF, negatives=2)
    done = run_round(start, {1: np.array([3, 7])}, settings=settings, rng=np.random.default_rng(0))
    assert done.personal[0] is start.personal[0]
    assert done.personal[2] is start.personal[2]
    assert not np.allclose(done.personal[1].weights, start.personal[1].weights)
    moved = np.flatnonzero((done.items != start.items).any(axis=1))
    assert len(moved) == 6
    assert {3, 7} <= set(moved.tolist())
    assert start.items.tolist() == federation(items=30).items.tolist()  # a round is a new value


# --- training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fit", "settings"), BOTH)
def test_taste_is_found_on_a_checkerboard(fit: Callable[..., Any], settings: Settings) -> None:
    data, cases = checkerboard()
    ranker = fit(data, seed=0, grid=(settings,))
    assert np.mean(ranks(ranker, cases)) < 1.5  # 4 by chance
    assert ranker.chosen["ridge"] == settings.ridge


def test_each_pass_asks_every_device_with_training_events_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    run = federated_factors.run_round

    def watched(state: Federation, cohort: Any, **options: Any) -> Federation:
        assert len(cohort) <= 2
        asked.extend(cohort)
        return run(state, cohort, **options)

    monkeypatch.setattr(federated_factors, "run_round", watched)
    data = training([0], [1], [], [2], [0, 1], [3], items=6)
    fit_fedmf(data, seed=0, grid=(replace(FEDMF, cohort=2, passes=3),))
    passes = [asked[start : start + 5] for start in (0, 5, 10)]
    assert len(asked) == 15
    assert all(sorted(one) == [0, 1, 3, 4, 5] for one in passes)
    assert passes[0] != passes[1] or passes[1] != passes[2]


def test_training_stops_after_its_patience_and_keeps_the_best_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    data, cases = checkerboard()
    told = [0.1, 0.5]
    monkeypatch.setattr(federated_factors, "validation_ndcg", lambda ranker, asked: told.pop(0))
    two = fit_fedmf(data, seed=0, grid=(replace(FEDMF, passes=2),))
    told += [0.1, 0.5, 0.3, 0.5, 0.9]
    stopped = fit_fedmf(data, seed=0, grid=(replace(FEDMF, patience=2),))
    assert told == [0.9]  # asked four times
    assert stopped.chosen == {"ridge": FEDMF.ridge, "passes": 2}
    assert stopped.scores(cases).tolist() == two.scores(cases).tolist()


def test_validation_decides_whose_item_vectors_pfedrec_ranks_with(monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = checkerboard()

    def prefers(own: bool) -> Callable[[Sequence[FederatedFactors], Any], FederatedFactors]:
        return lambda candidates, asked: next(one for one in candidates if one.settings.own_items is own)

    for own in (True, False):
        monkeypatch.setattr(federated_factors, "best_of", prefers(own))
        chosen = fit_pfedrec(data, seed=0, grid=(replace(PFEDREC, passes=1),)).chosen
        assert chosen == {"ridge": PFEDREC.ridge, "passes": 1, "own_items": own}


# --- ranking -----------------------------------------------------------------------------------------------


def ranker(settings: Settings, *, trained: tuple[bool, ...] = (True, True, False)) -> FederatedFactors:
    counts = np.arange(6, dtype=np.float32)
    return FederatedFactors(federation(), settings, np.array(trained), counts, seed=0, chosen={})


@pytest.mark.parametrize("settings", [FEDMF, PFEDREC])
def test_scores_do_not_depend_on_who_else_asks(settings: Settings) -> None:
    cases = [case(0, [0, 1]), case(1, [2]), case(2, [3])]
    together = ranker(settings).scores(cases)
    assert together.shape == (3, 6)
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    alone = [ranker(settings).scores([one])[0].tolist() for one in cases]
    assert together.tolist() == alone


def test_devices_without_training_events_get_popularity() -> None:
    assert ranker(FEDMF).scores([case(2, [0]), case(50, [])]).tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def test_a_device_ranks_with_what_happened_since_training() -> None:
    """Its weights follow its newest event; the server's item vectors and its stored weights stay."""
    settings = replace(FEDMF, negatives=9)
    one = ranker(settings)
    before, after = one.scores([case(0, [0]), case(0, [0, 5])])
    assert after[5] > before[5]
    again = ranker(settings).federation
    assert one.federation.items.tolist() == again.items.tolist()
    assert one.federation.personal[0].weights.tolist() == again.personal[0].weights.tolist()


def test_own_item_vectors_differ_in_the_devices_samples_only() -> None:
    """The device's copy scores its own items higher and the negatives it drew lower."""
    settings = replace(PFEDREC, negatives=2)
    question: list[Case] = [case(0, [0])]
    own = ranker(settings).scores(question)[0]
    common = ranker(replace(settings, own_items=False)).scores(question)[0]
    assert own[0] > common[0]
    assert np.count_nonzero(own < common) == 2
    assert np.count_nonzero(own == common) == 3
    still = ranker(replace(settings, item_rate=0.0)).scores(question)[0]
    np.testing.assert_allclose(still, common, rtol=1e-5)


@pytest.mark.parametrize(("fit", "settings"), BOTH)
def test_the_same_seed_gives_the_same_scores(fit: Callable[..., Any], settings: Settings) -> None:
    data: Training = checkerboard()[0]
    cases = checkerboard()[1]
    grid = (replace(settings, passes=3),)
    first = fit(data, seed=0, grid=grid).scores(cases)
    assert fit(data, seed=0, grid=grid).scores(cases).tolist() == first.tolist()
    assert fit(data, seed=1, grid=grid).scores(cases).tolist() != first.tolist()
