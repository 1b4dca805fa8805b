"""The ranking: exact parts, nothing that was seen, a fixed order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from client.ranker import recommend, score_catalogue, user_states
from client.store import History, Store
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY
from shared.prior import PRIOR
from shared.runtime import Runtime
from shared.schema import EventKind
from tests.client.small_device import ITEMS, LENGTH, SHELF, WITH_PRIOR, rows, tiny_config, tiny_runtime

pytestmark = pytest.mark.usefixtures("own_cache")


def past(items: list[int], *kinds: EventKind) -> History:
    store = Store(":memory:")
    store.replace(rows(items, kinds=kinds))
    return store.history(0, SHELF)


def trained_runtime(prior: Mapping[str, Any] | None = None) -> Runtime:
    """Every parameter off its start, popularity that grows with the item's number, and a random prior if asked for."""
    runtime = tiny_runtime(prior=prior)
    generator = np.random.default_rng(2)
    start = runtime.start.arrays
    arrays = {name: a + generator.normal(0, 0.3, a.shape).astype(np.float32) for name, a in start.items()}
    popularity = np.linspace(-1, 1, ITEMS, dtype=np.float32)
    if runtime.scorer.layout is not None:
        size = (runtime.scorer.layout.features, runtime.scorer.layout.output)
        arrays[PRIOR] = generator.normal(0, 0.3, size).astype(np.float32)
    runtime.install(AdapterState({**arrays, POPULARITY: popularity}))
    return runtime


def test_parts_add_up_to_the_score_and_scores_fall() -> None:
    runtime = trained_runtime()
    best = recommend(runtime, past([1, 2, 3]), k=ITEMS)
    assert [item.rank for item in best] == list(range(1, len(best) + 1))
    assert [item.score for item in best] == sorted((item.score for item in best), reverse=True)
    for item in best:
        assert set(item.parts) == {"content", "adapter", "popularity"}
        assert sum(item.parts.values()) == pytest.approx(item.score, rel=1e-5, abs=1e-5)
    assert max(abs(item.parts["adapter"]) for item in best) > 0.1


def test_parts_are_what_they_say() -> None:
    runtime = trained_runtime()
    start = {item.item_id: item.parts for item in recommend(tiny_runtime(), past([1, 2]), k=ITEMS)}
    assert all(parts["adapter"] == parts["popularity"] == 0.0 for parts in start.values())
    runtime = trained_runtime()
    weight = runtime.scorer.beta.weight.item()
    for item in recommend(runtime, past([1, 2]), k=5):
        number = SHELF.index(item.item_id)
        assert item.parts["popularity"] == pytest.approx(weight * np.linspace(-1, 1, ITEMS)[number], abs=1e-5)


def test_sharp_content_is_a_part_of_the_score_and_the_same_alone_and_in_a_batch() -> None:
    runtime = tiny_runtime(sharpness=3.0, content_whitening=0.5)
    histories = [past([1, 2, 3]), past([]), past([5]), past(list(range(2 * LENGTH)))]
    together = score_catalogue(runtime, histories)
    for row, history in enumerate(histories):
        assert together[row] == pytest.approx(score_catalogue(runtime, [history])[0], abs=1e-5)
        for item in recommend(runtime, history, k=3):
            assert item.score == pytest.approx(together[row, SHELF.index(item.item_id)], abs=1e-5)
            assert sum(item.parts.values()) == pytest.approx(item.score, abs=1e-5)
            assert (abs(item.parts["content"]) > 0.1) == (len(history) > 0)
    assert np.abs(together - score_catalogue(tiny_runtime(), histories)).max() > 0.1


def test_a_recommendation_names_an_item_of_the_catalogue() -> None:
    for item in recommend(trained_runtime(), past([4]), k=3):
        assert SHELF.items[SHELF.index(item.item_id)].title == item.title


def test_what_was_consumed_or_skipped_is_left_out_and_what_was_only_shown_is_not() -> None:
    kinds = [EventKind.CLICK, EventKind.SKIP, EventKind.IMPRESSION, EventKind.PURCHASE, EventKind.RATING]
    best = {item.item_id for item in recommend(trained_runtime(), past([0, 1, 2, 3, 4], *kinds), k=ITEMS)}
    assert best == {item.id for item in SHELF.items} - {"i0", "i1", "i3", "i4"}


def test_items_seen_longer_ago_than_the_window_are_left_out_too() -> None:
    history = past(list(range(3 * LENGTH)))
    assert len({item.item_id for item in recommend(trained_runtime(), history, k=ITEMS)}) == ITEMS - 3 * LENGTH


def test_who_has_seen_everything_is_told_nothing() -> None:
    assert recommend(trained_runtime(), past(list(range(ITEMS))), k=3) == []


def test_ties_go_to_the_first_in_the_catalogue() -> None:
    best = recommend(tiny_runtime(), past([]), k=4)
    assert [item.item_id for item in best] == ["i0", "i1", "i2", "i3"]
    best = recommend(tiny_runtime(gamma=0.0), past([1, 2]), k=3)
    assert [item.item_id for item in best] == ["i0", "i3", "i4"]


def test_without_a_history_popularity_ranks() -> None:
    runtime = trained_runtime()
    runtime.install(AdapterState({**tiny_runtime().start.arrays, POPULARITY: np.arange(ITEMS, dtype=np.float32)}))
    best = recommend(runtime, past([]), k=3)
    assert [item.item_id for item in best] == ["i23", "i22", "i21"]
    assert all(item.parts["content"] == item.parts["adapter"] == 0.0 for item in best)
    assert score_catalogue(runtime, [past([])])[0] == pytest.approx(0.5 * np.arange(ITEMS), abs=1e-5)


def test_a_batch_scores_like_one_history_at_a_time() -> None:
    runtime = trained_runtime()
    histories = [past([1, 2, 3]), past([]), past([5]), past(list(range(2 * LENGTH)))]
    together = score_catalogue(runtime, histories)
    assert together.shape == (4, ITEMS)
    assert together.dtype == np.float32
    for row, history in enumerate(histories):
        assert together[row] == pytest.approx(score_catalogue(runtime, [history])[0], abs=1e-4)
    assert user_states(runtime, histories).shape == (4, runtime.table.rows.shape[1])


def test_without_the_learned_part_the_weights_are_those_of_the_start() -> None:
    history, fresh = past([1, 2, 3]), tiny_runtime()
    popularity = np.linspace(-1, 1, ITEMS, dtype=np.float32)
    fresh.install(AdapterState({**fresh.start.arrays, POPULARITY: popularity}))
    expected = score_catalogue(fresh, [history])
    runtime = trained_runtime()
    assert runtime.scorer.gamma.weight.item() != tiny_config().model.gamma
    assert score_catalogue(runtime, [history], stage="start") == pytest.approx(expected, abs=1e-5)
    assert np.abs(score_catalogue(runtime, [history]) - expected).max() > 0.1


# --- with a prior ------------------------------------------------------------------------------------------


def test_a_recommendation_says_how_much_of_it_is_the_priors() -> None:
    runtime, history = trained_runtime(prior=WITH_PRIOR), past([1, 2, 3])
    best = recommend(runtime, history, k=ITEMS)
    for item in best:
        assert set(item.parts) == {"content", "adapter", "popularity", "prior"}
        assert sum(item.parts.values()) == pytest.approx(item.score, rel=1e-5, abs=1e-5)
    assert len({round(item.parts["prior"], 4) for item in best}) > ITEMS / 2
    scores = score_catalogue(runtime, [history])[0]
    assert [item.score for item in best] == sorted((item.score for item in best), reverse=True)
    for item in best:
        assert item.score == pytest.approx(float(scores[runtime.catalogue.index(item.item_id)]), abs=1e-5)


def test_without_a_history_the_prior_is_popularity_too() -> None:
    runtime = trained_runtime(prior=WITH_PRIOR)
    best = recommend(runtime, past([]), k=ITEMS)
    assert [item.item_id for item in best] == [f"i{item}" for item in reversed(range(ITEMS))]
    assert all(item.parts["content"] == item.parts["adapter"] == 0.0 for item in best)
    logs = runtime.config.prior.kappa * np.log(runtime.config.prior.floor * runtime.table.share.numpy())
    assert [item.parts["prior"] for item in best] == pytest.approx(logs[::-1].tolist(), abs=1e-4)
