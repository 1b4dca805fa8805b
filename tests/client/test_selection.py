"""What may be shown: tags, domains, an app's own shelf, refusals and what was seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from client.interests import interest_scores, interests, muted_items, tag_shares
from client.selection import Selection, allowed_items
from client.store import History
from client.tags import TagTable
from shared.catalogue import Catalogue
from shared.errors import CatalogueError, ConfigError
from shared.schema import EventKind, Item

FILMS = Catalogue(
    (
        Item("0", "a", "a", tags=("Drama",), domain="films"),
        Item("1", "b", "b", tags=("Comedy", "Drama"), domain="films"),
        Item("2", "c", "c", tags=("Comedy",), domain="books"),
        Item("3", "d", "d", domain="books"),
    )
)
TAGS = TagTable.of_catalogue(FILMS)  # Comedy, Drama


def past(*events: tuple[int, EventKind]) -> History:
    items = np.array([item for item, _ in events], dtype=np.int64)
    kinds = np.array([kind for _, kind in events], dtype=np.int64)
    nothing = np.zeros(len(events))
    return History(items, nothing, kinds, nothing.astype(np.int64), nothing)


HISTORY = past((0, EventKind.CLICK), (1, EventKind.SKIP), (2, EventKind.IMPRESSION))


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({}, [2, 3]),
        ({"seen": "show"}, [0, 1, 2, 3]),
        ({"seen": "fresh"}, [3]),
        ({"seen": "show", "tags": ["drama"]}, [0, 1]),
        ({"seen": "show", "tags": ["Drama", "Comedy"]}, [0, 1, 2]),
        ({"seen": "show", "without_tags": ["Comedy"]}, [0, 3]),
        ({"seen": "show", "domains": ["books"]}, [2, 3]),
        ({"seen": "show", "candidates": [3, 1]}, [1, 3]),
        ({"seen": "show", "candidates": []}, []),
        ({"seen": "show", "not_interested": [0]}, [1, 2, 3]),
        ({"tags": ["Comedy"], "candidates": [1, 2, 3]}, [2]),
    ],
)
def test_a_selection_leaves(wish: dict[str, Any], expected: list[int]) -> None:
    may = allowed_items(FILMS, TAGS, selection=Selection(**wish), history=HISTORY)
    assert np.flatnonzero(may).tolist() == expected


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"tags": ["Horror"]}, "found tag 'Horror'"),
        ({"domains": ["music"]}, "expected one of 'books', 'films'"),
        ({"candidates": [4]}, "found item index 4; expected 0 to 3"),
        ({"not_interested": [-1]}, "found item index -1"),
        ({"seen": "never"}, "expected one of show, hide, fresh"),
    ],
)
def test_what_the_catalogue_does_not_have_is_refused(wish: dict[str, Any], said: str) -> None:
    with pytest.raises(CatalogueError, match=said):
        allowed_items(FILMS, TAGS, selection=Selection(**wish))


# --- interests ---------------------------------------------------------------------------------------------


def test_interests_are_recency_weighted_shares_against_the_catalogue() -> None:
    history = past((0, EventKind.CLICK), (3, EventKind.IMPRESSION), (1, EventKind.SKIP), (2, EventKind.LIKE))
    assert tag_shares(history, TAGS, half_life=1.0) == pytest.approx(
        [2 / 3, 1 / 3]
    )  # the newest counts 1, the other 1/2
    comedy, drama = interests(history, TAGS, half_life=1.0)
    assert (comedy.tag, drama.tag) == ("Comedy", "Drama")
    assert (comedy.share, comedy.usual) == pytest.approx((2 / 3, 1 / 2))
    assert comedy.weight == pytest.approx((1.5 * 2 / 3 + 5 * 0.5) / (6.5 * 0.5))  # pulled towards 1 by five events
    assert drama.weight < 1 < comedy.weight < (2 / 3) / 0.5


def test_without_a_history_only_edits_are_interests() -> None:
    assert interests(past(), TAGS) == []
    (drama,) = interests(past(), TAGS, edits={"drama": 2.0})
    assert (drama.tag, drama.share, drama.weight, drama.edit) == ("Drama", 0.0, 1.0, 2.0)


def test_a_boost_adds_for_each_tag_and_half_takes_away() -> None:
    assert interest_scores(TAGS, {"Drama": 4.0, "Comedy": 0.5}, strength=1.5).tolist() == [3.0, 1.5, -1.5, 0.0]


def test_a_mute_removes_items_and_adds_nothing() -> None:
    assert interest_scores(TAGS, {"Drama": 0.0}, strength=1.0).tolist() == [0, 0, 0, 0]
    assert muted_items(TAGS, {"Drama": 0.0}).tolist() == [True, True, False, False]
    assert not muted_items(TAGS, {}).any()


def test_edits_that_mean_nothing_are_refused() -> None:
    for factor in (-1.0, 9.0, float("nan")):
        with pytest.raises(ConfigError, match=r"expected 0 \(mute\) to 8"):
            interest_scores(TAGS, {"Drama": factor}, strength=1.0)
    with pytest.raises(CatalogueError, match="Horror"):
        muted_items(TAGS, {"Horror": 0.0})
