"""The slate: nothing on changes nothing, every move is told, and each stage does what it says."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.exploration import Explorer, Taste, leading_directions
from client.slate import Person, Placed, Shelf, SlateSettings, best_items, build_slate
from client.tags import TagTable
from shared.catalogue import Catalogue
from shared.errors import CatalogueError, ConfigError, DataError
from shared.schema import Item

ITEMS = 40


def make_shelf(seed: int = 0, items: int = ITEMS, **changes: Any) -> Shelf:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(items, 6)).astype(np.float32)
    tags = [("A",), ("B",), ("A", "C"), ()]
    catalogue = Catalogue(
        tuple(
            Item(str(n), f"Thing {n} ({1980 + n})", "text", tags=tags[generator.integers(len(tags))])
            for n in range(items)
        )
    )
    shelf = Shelf.of(
        catalogue,
        vectors=rows / np.linalg.norm(rows, axis=1, keepdims=True),
        popularity=generator.normal(size=items),
    )
    return dataclasses.replace(shelf, creators=generator.integers(-1, 6, items), **changes)


SHELF = make_shelf()
WANTED = np.array([0.2, 0.7, 0.1])
EXPLORER = Explorer.drawn(leading_directions(SHELF.vectors, count=3), Taste.unknown(3), seed=4)
PERSON = Person(WANTED, EXPLORER)


def items_of(slate: list[Placed]) -> list[int]:
    return [one.item for one in slate]


scores_of_all = st.lists(st.integers(-3, 3).map(float), min_size=ITEMS, max_size=ITEMS)


@given(scores_of_all, st.integers(0, ITEMS + 5), st.lists(st.booleans(), min_size=ITEMS, max_size=ITEMS))
@settings(max_examples=60, deadline=None)
def test_with_everything_off_it_is_the_top_k_with_ties_to_the_lower_index(
    scores: list[float], k: int, may: list[bool]
) -> None:
    slate = build_slate(np.array(scores), k=k, shelf=SHELF, allowed=np.array(may), person=PERSON)
    ranked = sorted((item for item in range(ITEMS) if may[item]), key=lambda item: (-scores[item], item))[:k]
    assert slate == [Placed(item, rank, rank) for rank, item in enumerate(ranked, start=1)]


many_settings = st.builds(
    SlateSettings,
    pool=st.integers(1, 50),
    exploration=st.sampled_from([0.0, 0.5]),
    freshness=st.sampled_from([0.0, 1.0]),
    mmr=st.sampled_from([0.0, 1.0]),
    dpp=st.sampled_from([0.0, 1.0]),
    calibration=st.sampled_from([0.0, 3.0]),
    tail_share=st.sampled_from([0.0, 0.9]),
    cap_per_tag=st.sampled_from([0, 2]),
    cap_per_creator=st.sampled_from([0, 1]),
)


@given(many_settings, st.integers(0, 10_000), st.integers(0, ITEMS + 5))
@settings(max_examples=150, deadline=None)
def test_moves_lead_from_the_rank_by_score_to_the_rank_in_the_slate(knobs: SlateSettings, seed: int, k: int) -> None:
    generator = np.random.default_rng(seed)
    scores, allowed = generator.integers(-3, 3, ITEMS).astype(float), generator.random(ITEMS) < 0.8
    slate = build_slate(scores, k=k, shelf=SHELF, settings=knobs, allowed=allowed, person=PERSON)
    by_score = sorted(np.flatnonzero(allowed).tolist(), key=lambda item: (-scores[item], item))
    assert [one.rank for one in slate] == list(range(1, len(slate) + 1))
    assert len(set(items_of(slate))) == len(slate) <= k
    if not (knobs.cap_per_tag or knobs.cap_per_creator):
        assert len(slate) == min(k, len(by_score))
    for one in slate:
        assert one.score_rank == by_score.index(one.item) + 1
        ranks = [one.score_rank, *(rank for move in one.moves for rank in (move.before, move.after)), one.rank]
        assert ranks[::2] == ranks[1::2]  # each move starts where the one before ended
        assert all(move.before != move.after for move in one.moves)
        assert all(move.stage == "pool" or getattr(knobs, move.stage) for move in one.moves)


@given(st.integers(0, 10_000), st.integers(1, ITEMS), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_caps_hold_in_the_pool_and_after_it(seed: int, k: int, pool: int) -> None:
    scores = np.random.default_rng(seed).normal(size=ITEMS)
    knobs = SlateSettings(pool=pool, cap_per_tag=3, cap_per_creator=2)
    items = np.array(items_of(build_slate(scores, k=k, shelf=SHELF, settings=knobs)), dtype=np.int64)
    assert (SHELF.tags.shares(items) > 0).sum(0).max(initial=0) <= 3
    assert SHELF.creators is not None
    creators = SHELF.creators[items]
    assert np.bincount(creators[creators >= 0]).max(initial=0) <= 2
    if len(items) < k:  # whatever is left would break a cap
        full = (SHELF.tags.shares(items) > 0).sum(0) == 3
        for item in set(range(ITEMS)) - set(items.tolist()):
            busy = (creators == SHELF.creators[item]).sum() == 2 and SHELF.creators[item] >= 0
            assert busy or full[SHELF.tags.of_item(item)].any()


def test_a_capped_item_makes_room_and_the_move_says_what_the_cap_was() -> None:
    table = TagTable(("A",), np.array([0, 1, 2, 3, 3]), np.array([0, 0, 0]))
    shelf = Shelf(np.eye(4, dtype=np.float32), table, np.zeros(4), np.full(4, np.nan))
    slate = build_slate(np.array([4.0, 3, 2, 1]), k=3, shelf=shelf, settings=SlateSettings(cap_per_tag=2))
    assert items_of(slate) == [0, 1, 3]
    (move,) = slate[2].moves
    assert (move.stage, move.before, move.after) == ("cap_per_tag", 4, 3)
    assert move.figures == {"fullest": 0.0, "cap": 2.0}
    assert slate[0].moves == ()


def test_a_tail_share_reaches_beyond_the_pool_and_tells_the_true_rank() -> None:
    popularity = np.arange(10, 0, -1, dtype=float)  # items 0 and 1 are the head
    shelf = Shelf(np.eye(10, dtype=np.float32), SHELF.tags, popularity, np.full(10, np.nan))
    shelf = dataclasses.replace(shelf, tags=TagTable((), np.zeros(11, dtype=np.int64), np.zeros(0, dtype=np.int64)))
    assert shelf.tail.tolist() == [False, False, *[True] * 8]
    scores = np.array([9.0, 8, 1, 1, 1, 1, 1, 1, 1, 7])
    slate = build_slate(scores, k=2, shelf=shelf, settings=SlateSettings(pool=2, tail_share=0.5))
    assert [(one.item, one.rank, one.score_rank) for one in slate] == [(0, 1, 1), (9, 2, 3)]
    assert slate[1].moves[0].figures == {"tail": 1.0, "needed": 1.0}
    assert dataclasses.replace(shelf, popularity=np.zeros(10)).tail.all()


def test_freshness_lifts_the_newest_and_an_unknown_year_gets_nothing() -> None:
    years = np.array([1990.0, 2000.0, np.nan])
    table = TagTable((), np.zeros(4, dtype=np.int64), np.zeros(0, dtype=np.int64))
    shelf = Shelf(np.eye(3, dtype=np.float32), table, np.zeros(3), years)
    knobs = SlateSettings(freshness=2.0, freshness_half_life=10.0)
    slate = build_slate(np.zeros(3), k=3, shelf=shelf, settings=knobs)
    assert items_of(slate) == [1, 0, 2]
    assert slate[0].moves[0].figures == {"bonus": 2.0}
    assert slate[1].moves[0].figures == {"bonus": 1.0}
    blind = dataclasses.replace(shelf, years=np.full(3, np.nan))
    assert items_of(build_slate(np.zeros(3), k=3, shelf=blind, settings=knobs)) == [0, 1, 2]


def test_exploration_is_the_same_for_a_seed_and_differs_between_seeds() -> None:
    features = leading_directions(SHELF.vectors, count=3)
    knobs = SlateSettings(exploration=3.0)

    def explored(seed: int) -> list[int]:
        explorer = Explorer.drawn(features, Taste.unknown(3), seed=seed)
        person = Person(explorer=explorer)
        return items_of(build_slate(np.zeros(ITEMS), k=8, shelf=SHELF, settings=knobs, person=person))

    assert explored(1) == explored(1)
    assert explored(1) != explored(2)


def test_stages_without_what_they_go_by_do_nothing() -> None:
    knobs = SlateSettings(calibration=5.0, exploration=5.0)
    slate = build_slate(np.arange(ITEMS, dtype=float), k=3, shelf=SHELF, settings=knobs)
    assert slate == [Placed(ITEMS - 1, 1, 1), Placed(ITEMS - 2, 2, 2), Placed(ITEMS - 3, 3, 3)]


def test_nothing_left_is_an_empty_slate() -> None:
    nobody = np.zeros(ITEMS, dtype=bool)
    assert build_slate(np.zeros(ITEMS), k=3, shelf=SHELF, allowed=nobody, settings=SlateSettings(mmr=1.0)) == []
    assert build_slate(np.full(ITEMS, -np.inf), k=3, shelf=SHELF) == []


@pytest.mark.parametrize(
    "change", [{"mmr": -1.0}, {"tail_share": 1.5}, {"pool": 0}, {"dpp": np.nan}, {"cap_per_tag": -1}]
)
def test_settings_that_mean_nothing_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"slate.{next(iter(change))}"):
        SlateSettings(**change)
    with pytest.raises(ConfigError, match="half_life"):
        SlateSettings(freshness_half_life=0.0)


def test_scores_and_caps_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(DataError, match="expected"):
        build_slate(np.full(ITEMS, np.nan), k=3, shelf=SHELF)
    with pytest.raises(DataError, match="expected"):
        build_slate(np.zeros(ITEMS - 1), k=3, shelf=SHELF)
    blind = dataclasses.replace(SHELF, creators=None)
    with pytest.raises(ConfigError, match="creators"):
        build_slate(np.zeros(ITEMS), k=3, shelf=blind, settings=SlateSettings(cap_per_creator=1))
    with pytest.raises(CatalogueError, match="popularity of 2 items"):
        Shelf.of(Catalogue((Item("a", "A", "a"),)), vectors=np.ones((1, 2), np.float32), popularity=np.zeros(2))


def test_the_best_of_many_equal_items_are_the_first() -> None:
    scores = np.zeros(1_000)
    scores[[700, 300]] = 1.0
    assert best_items(scores, np.ones(1_000, dtype=bool), 5).tolist() == [300, 700, 0, 1, 2]
    assert best_items(scores, np.ones(1_000, dtype=bool), 0).tolist() == []
