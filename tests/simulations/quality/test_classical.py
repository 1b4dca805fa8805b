"""Popularity, Markov chain, item-kNN and EASE: numbers worked out by hand, and what every baseline must keep to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from client.samples import seen_items
from client.store import History
from shared.metrics import rank_of
from shared.schema import EventKind
from simulations.evaluation import Case
from simulations.quality import classical
from simulations.quality.base import Training
from simulations.quality.classical import (
    ItemToItem,
    best_of,
    fit_ease,
    fit_item_knn,
    fit_markov,
    fit_popularity,
    popularity_counts,
    positives,
    validation_ndcg,
)


def history(*items: int, kinds: Sequence[EventKind] = ()) -> History:
    """One click on each item, or the given kinds of events."""
    zeros = np.zeros(len(items), dtype=np.int64)
    told = np.array([int(kind) for kind in kinds] or zeros + int(EventKind.CLICK), dtype=np.int64)
    floats = zeros.astype(np.float64)
    return History(items=np.array(items, dtype=np.int64), times=floats, kinds=told, roles=zeros, values=floats)


def case(user: int, items: Sequence[int], target: int = -1) -> Case:
    return Case(user, history(*items), target, np.unique(items).astype(np.int64))


def training(*sequences: Sequence[int], items: int, validation: Sequence[Case] = ()) -> Training:
    return Training(tuple(history(*sequence) for sequence in sequences), items, tuple(validation))


def checkerboard(*, users: int = 24, items: int = 12, seed: int = 0) -> tuple[Training, list[Case]]:
    """Even users consume even items, odd users odd ones; one case each, whose target is the one item left out."""
    rng = np.random.default_rng(seed)
    sequences, cases = [], []
    for user in range(users):
        *seen, target = rng.permutation(np.arange(user % 2, items, 2)).tolist()
        sequences.append(seen)
        cases.append(case(user, seen, target))
    return training(*sequences, items=items, validation=cases[::2]), cases


def ranks(ranker: Any, cases: Sequence[Case]) -> list[int]:
    rows = zip(cases, ranker.scores(cases), strict=True)
    return [rank_of(row, one.target, removed=seen_items(one.history)) for one, row in rows]


FITS: list[Callable[..., Any]] = [fit_popularity, fit_markov, fit_item_knn, fit_ease]


# --- what every baseline must keep to ----------------------------------------------------------------------


@pytest.mark.parametrize("fit", FITS)
def test_scores_are_finite_and_do_not_depend_on_who_else_asks(fit: Callable[..., Any]) -> None:
    data, cases = checkerboard()
    ranker = fit(data, seed=0)
    together = ranker.scores(cases)
    assert together.shape == (24, 12)
    assert together.dtype == np.float32
    assert np.isfinite(together).all()  # nothing is masked, that is for whoever measures
    alone = np.concatenate([ranker.scores([one]) for one in cases])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("fit", FITS)
def test_an_empty_history_is_ranked_by_popularity(fit: Callable[..., Any]) -> None:
    data = training([0, 1, 2], [1, 2], [2, 3], items=5)
    scores = fit(data, seed=0).scores([case(9, [])])[0]
    assert scores[2] > scores[1] > scores[0] > scores[4]
    assert scores[0] == scores[3]


@pytest.mark.parametrize("fit", FITS[1:])
def test_the_history_of_the_case_is_the_question_not_that_of_training(fit: Callable[..., Any]) -> None:
    data, _ = checkerboard()
    ranker = fit(data, seed=0)
    stranger, owner = ranker.scores([case(999, [0, 2]), case(1, [0, 2])])
    assert stranger.tolist() == owner.tolist()


def test_only_positive_events_count() -> None:
    kinds = [EventKind.IMPRESSION, EventKind.CLICK, EventKind.SKIP, EventKind.RATING]
    mixed = history(0, 1, 2, 3, kinds=kinds)
    assert positives(mixed).tolist() == [1, 3]
    data = Training((mixed, mixed), 4, ())
    assert popularity_counts(data).tolist() == [0, 2, 0, 2]
    chain = fit_markov(data, seed=0, priors=(1e-3,), decays=(0.0,))
    assert chain.weights[1].argmax() == 3  # the skip in between is no step


# --- choosing on validation --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fixed:
    row: np.ndarray
    chosen: dict[str, float]

    def scores(self, cases: Sequence[Case]) -> np.ndarray:
        return np.tile(self.row, (len(cases), 1))


def test_validation_quality_is_ndcg_of_unseen_items_on_the_first_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    ranker = Fixed(np.array([9, 5, 4, 3], dtype=np.float32), {})
    first, second = case(0, [0], 1), case(1, [0], 3)  # ranks 1 and 3
    assert validation_ndcg(ranker, [first, second]) == pytest.approx((1 + 1 / 2) / 2)
    assert validation_ndcg(ranker, []) == 0
    monkeypatch.setattr(classical, "TUNING_CASES", 1)
    assert validation_ndcg(ranker, [second, first]) == pytest.approx(1 / 2)


def test_the_best_candidate_wins_and_the_first_of_equals() -> None:
    rows = ([1, 2, 3], [3, 2, 1], [3, 1, 2])
    candidates = [Fixed(np.array(row, dtype=np.float32), {"row": number}) for number, row in enumerate(rows)]
    assert best_of(candidates, [case(0, [], 0)]).chosen == {"row": 1}
    assert best_of(candidates, [case(0, [], 2)]).chosen == {"row": 0}
    assert best_of(candidates, []).chosen == {"row": 0}


def test_a_chain_that_needs_older_events_gets_them() -> None:
    """The next item depends on the event before the newest one, which is always item 0."""
    sequences = [[first, 0, first + 1] for first in (1, 3, 5)] * 3
    asked = [case(9, [first, 0], first + 1) for first in (1, 3, 5)]
    plain = fit_markov(training(*sequences, items=7, validation=asked), seed=0, decays=(0.0,))
    mixed = fit_markov(training(*sequences, [1, 2], [3, 4], [5, 6], items=7, validation=asked), seed=0)
    assert max(ranks(plain, asked)) > 1
    assert ranks(mixed, asked) == [1, 1, 1]
    assert mixed.chosen["decay"] > 0


@pytest.mark.parametrize(("target", "decay"), [(1, 1.0), (3, 0.0)])
@pytest.mark.parametrize("fit", [fit_item_knn, fit_ease])
def test_the_same_training_gets_the_settings_that_validation_asks_for(
    fit: Callable[..., Any], target: int, decay: float
) -> None:
    """Items 0 and 4 say item 1, and the newest one, 2, says item 3."""
    sequences = [[0, 4, 1]] * 3 + [[2, 3]] * 3
    asked = [case(9, [0, 4, 2], target)]
    ranker = fit(training(*sequences, items=6, validation=asked), seed=0, decays=(0.0, 1.0))
    assert ranker.chosen["decay"] == decay
    assert ranks(ranker, asked) == [1]


# --- each by hand ------------------------------------------------------------------------------------------


def test_popularity_counts_training_events() -> None:
    data = training([0, 1, 1], [1, 2], [], items=4, validation=[case(0, [0], 3)])
    assert fit_popularity(data, seed=0).scores([case(0, [0])]).tolist() == [[1, 3, 1, 0]]


def test_a_markov_row_is_counts_with_a_prior_of_popularity() -> None:
    """0 -> 1 twice, 0 -> 2 once; popularity of items 0 to 3 is 3, 2, 1 and 0 of 6."""
    data = training([0, 1], [0, 1], [0, 2], items=4)
    chain = fit_markov(data, seed=0, priors=(6.0,), decays=(0.0,))
    np.testing.assert_allclose(chain.weights[0], [3 / 9, (2 + 2) / 9, (1 + 1) / 9, 0], rtol=1e-6)
    np.testing.assert_allclose(chain.weights[3], [3 / 6, 2 / 6, 1 / 6, 0], rtol=1e-6)  # nothing ever followed item 3
    np.testing.assert_allclose(chain.scores([case(9, [2, 1, 0])])[0], chain.weights[0], atol=1e-5)


def test_with_the_smallest_prior_popularity_orders_only_what_never_followed() -> None:
    data = training([0, 1], [2, 3], [2, 3], [2, 3], items=4)
    scores = fit_markov(data, seed=0, priors=(1.0,), decays=(0.0,)).scores([case(9, [0])])[0]
    assert scores[1] > scores[3] >= scores[2] > scores[0]


def test_the_query_forgets_old_events_and_adds_up_repeats() -> None:
    weights = np.array([[0, 8, 0], [0, 0, 4], [2, 0, 0]], dtype=np.float32)
    nothing = np.zeros(3, dtype=np.float32)
    ranker = ItemToItem(weights, nothing, decay=0.5, chosen={})
    # ages 3, 2, 1, 0: item 0 weighs 1/8 + 1/2, item 1 weighs 1/4, item 2 weighs 1
    assert ranker.scores([case(0, [0, 1, 0, 2])]).tolist() == [[2, 5, 1]]
    assert ItemToItem(weights, nothing, decay=0.0, chosen={}).scores([case(0, [0, 1])]).tolist() == [[0, 0, 4]]
    assert ItemToItem(weights, nothing, decay=1.0, chosen={}).scores([case(0, [0, 1])]).tolist() == [[0, 8, 4]]


def test_neighbours_are_weighted_by_shrunk_cosine() -> None:
    """Items 0 and 1 share two of their three and two people; items 0 and 2 share one of three and one."""
    data = training([0, 1], [0, 1], [0, 2], items=4)
    near = fit_item_knn(data, seed=0, neighbours=(3,), shrinkages=(1.0,), decays=(1.0,))
    np.testing.assert_allclose(near.weights[0], [0, 2 / (6**0.5 + 1), 1 / (3**0.5 + 1), 0], rtol=1e-6)
    nearest = fit_item_knn(data, seed=0, neighbours=(1,), shrinkages=(1.0,), decays=(1.0,))
    np.testing.assert_allclose(nearest.weights[0], [0, 2 / (6**0.5 + 1), 0, 0], rtol=1e-6)
    assert nearest.chosen == {"neighbours": 1, "shrinkage": 1.0, "decay": 1.0}


def test_ease_solves_the_regression_it_claims_to_solve() -> None:
    """Off the diagonal the gradient of |X - XB|^2 + lambda |B|^2 is zero; on it B is."""
    rng = np.random.default_rng(0)
    consumed = rng.random((30, 8)) < 0.4
    data = training(*(np.flatnonzero(row).tolist() for row in consumed), items=8)
    weights = fit_ease(data, seed=0, ridges=(5.0,), decays=(1.0,)).weights.astype(np.float64)
    gram = consumed.astype(np.float64).T @ consumed
    gradient = gram @ weights - gram + 5.0 * weights
    np.testing.assert_allclose(gradient[~np.eye(8, dtype=bool)], 0, atol=1e-4)
    assert not np.diag(weights).any()
    assert np.abs(weights).max() > 0.05


@pytest.mark.parametrize("fit", [fit_item_knn, fit_ease])
def test_taste_is_found_on_a_checkerboard(fit: Callable[..., Any]) -> None:
    data, cases = checkerboard()
    assert set(ranks(fit(data, seed=0), cases)) == {1}
