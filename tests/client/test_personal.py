"""Personal weights and the long-tail control: learned on the device, pulled to the start, exact in their effect."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from client.personal import START, fit_weights
from client.ranker import recommend, score_catalogue
from client.samples import training_windows
from client.store import History
from shared.runtime import Runtime
from shared.windows import IGNORE
from tests.client.small_device import ITEMS, LENGTH, WITH_PRIOR
from tests.client.test_ranker import past, trained_runtime

pytestmark = pytest.mark.usefixtures("own_cache")

PRIORS: tuple[dict[str, Any] | None, ...] = (None, WITH_PRIOR)


def likelihood(runtime: Runtime, history: History, weights: np.ndarray) -> float:
    """Log likelihood of the newest windows' targets under personal weights, one by one and from score_catalogue."""
    total = 0.0
    events = history[history.roles == 0]
    windows = training_windows(history, length=LENGTH)
    for row in range(max(0, len(windows) - 2), len(windows)):
        for place in range(int(windows.real[row].sum())):
            if windows.targets[row, place] == IGNORE:
                continue
            start = row * LENGTH
            scores = score_catalogue(runtime, [events[start : start + place + 1]], weights=weights)[0]
            total += float(torch.log_softmax(torch.from_numpy(scores), 0)[windows.targets[row, place]])
    return total


@pytest.mark.parametrize("prior", PRIORS)
def test_nobody_is_moved_without_events(prior: Any) -> None:
    runtime = trained_runtime(prior)
    nothing = past([1])[:0]
    assert fit_weights(runtime, nothing).tolist() == list(START)
    assert fit_weights(runtime, past([1])).tolist() == list(START)  # one event has no successor


@pytest.mark.parametrize("prior", PRIORS)
def test_the_start_ranks_as_everybody_does(prior: Any) -> None:
    runtime = trained_runtime(prior)
    history = past([1, 2, 3])
    own = score_catalogue(runtime, [history], weights=np.array(START, dtype=np.float32))
    assert own == pytest.approx(score_catalogue(runtime, [history]), abs=1e-5)


@pytest.mark.parametrize("prior", PRIORS)
def test_the_weights_maximise_the_penalised_likelihood(prior: Any) -> None:
    runtime = trained_runtime(prior)
    history = past([int(item) for item in np.random.default_rng(3).permutation(ITEMS)[: 2 * LENGTH]])
    pull = 4.0
    best = fit_weights(runtime, history, pull=pull)
    moved = (0, 1, 2) if prior else (0, 2)  # without a prior nothing is known about its weight
    assert np.abs(best - np.array(START))[list(moved)].max() > 0.01

    def objective(weights: np.ndarray) -> float:
        return likelihood(runtime, history, weights) - pull / 2 * float(((weights - np.array(START)) ** 2).sum())

    found = objective(best)
    for place in moved:
        for step in (-0.2, 0.2):
            other = best.copy()
            other[place] += step
            assert objective(other) < found


def test_a_strong_pull_keeps_the_start() -> None:
    runtime = trained_runtime()
    assert fit_weights(runtime, past([1, 2, 3, 4, 5]), pull=1e9) == pytest.approx(START, abs=1e-4)


def test_someone_who_takes_what_nobody_takes_gets_a_taste_for_it() -> None:
    runtime = trained_runtime()  # popularity grows with the item's number
    niche = fit_weights(runtime, past(list(range(6))), pull=1.0)[2]
    hits = fit_weights(runtime, past(list(range(ITEMS - 6, ITEMS))), pull=1.0)[2]
    assert niche < hits


def test_the_tail_control_takes_popularity_from_each_score() -> None:
    runtime = trained_runtime()
    history = past([1, 2, 3])
    popularity = runtime.table.rows[:, -1].numpy()
    difference = score_catalogue(runtime, [history], tail=0.5) - score_catalogue(runtime, [history])
    assert difference[0] == pytest.approx(-0.5 * popularity, abs=1e-5)


def test_the_tail_control_is_a_part_of_the_score() -> None:
    runtime = trained_runtime()
    shown = recommend(runtime, past([1, 2, 3]), k=ITEMS, tail=20.0)
    for item in shown:
        assert sum(item.parts.values()) == pytest.approx(item.score, rel=1e-5, abs=1e-5)
    assert "tail" in shown[0].parts
    plain = recommend(runtime, past([1, 2, 3]), k=ITEMS)
    places = {item.id: place for place, item in enumerate(runtime.catalogue.items)}  # later ones are more popular
    first = [np.mean([places[item.item_id] for item in found[:5]]) for found in (shown, plain)]
    assert first[0] < first[1]
