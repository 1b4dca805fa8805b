"""The service ranks: an event changes the very next slate, what is asked is what is shown, and scores add up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from client.ranker import score_catalogue
from client.service.feed import Pace
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, load_adapter
from shared.runtime import Runtime
from tests.client.service.small_service import SHELF, Served, config

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path) as service:
        yield service


def test_an_event_changes_the_very_next_slate(served: Served) -> None:
    before = served.slate(k=24)
    assert len(before) == 24
    served.record("i3")
    after = served.slate(k=24)
    assert "i3" not in [one["item"] for one in after]
    assert len(after) == 23
    scores = {one["item"]: one["score"] for one in before}
    assert any(abs(one["score"] - scores[one["item"]]) > 1e-3 for one in after)


def test_the_service_ranks_as_the_whole_model_does_from_scratch(served: Served) -> None:
    for item in ("i1", "i2", "i5", "i9", "i4", "i17"):  # more than a window
        served.record(item)
    state, popularity, _ = load_adapter(served.profile.adapter)
    runtime = Runtime(config(), SHELF)
    runtime.install(AdapterState({**state.arrays, POPULARITY: popularity}))
    history = served.person.shop.journal.newest(100)
    expected = score_catalogue(runtime, [history])[0]
    for one in served.slate(k=24):
        assert one["score"] == pytest.approx(float(expected[SHELF.index(one["item"])]), abs=2e-3)
        assert one["score"] == pytest.approx(sum(one["parts"].values()), abs=1e-4)
    assert [one["score"] for one in served.slate(k=24)] == sorted(
        (o["score"] for o in served.slate(k=24)), reverse=True
    )


def test_a_shelf_of_an_app_is_ranked_and_nothing_else(served: Served) -> None:
    assert set(served.ids(candidates=["i1", "i7", "i20"])) == {"i1", "i7", "i20"}
    assert served.ids(candidates=[]) == []
    assert "unknown id 'i99'" in served.refused("/v1/recommend", {"candidates": ["i1", "i99"]})


def test_filters_by_tag_and_domain(served: Served) -> None:
    crime = {item.id for item in SHELF.items if "crime" in item.tags}
    assert set(served.ids(k=24, tags=["Crime"])) == crime
    assert not set(served.ids(k=24, without_tags=["crime"])) & crime
    assert set(served.ids(k=24, domains=["books"])) == {f"i{n}" for n in range(18, 24)}
    assert "did you mean 'crime'" in served.refused("/v1/recommend", {"tags": ["crme"]})
    assert "expected one of" in served.refused("/v1/recommend", {"domains": ["music"]})


def test_what_was_seen_is_hidden_shown_or_hidden_even_when_only_shown(served: Served) -> None:
    served.record("i1")
    served.record("i2", kind="skip")
    served.record("i3", kind="impression")
    assert {"i1", "i2"} & set(served.ids(k=24)) == set()
    assert "i3" in served.ids(k=24)
    assert {"i1", "i2", "i3"} <= set(served.ids(k=24, seen="show"))
    assert {"i1", "i2", "i3"} & set(served.ids(k=24, seen="fresh")) == set()


def test_feedback_hides_learns_and_can_be_undone(served: Served) -> None:
    assert served.post("/v1/feedback", {"item": "i5", "verdict": "not-interested"})["event"] is None
    assert "i5" not in served.ids(k=24, seen="show")
    assert [one["item"] for one in served.get("/v1/not-interested")] == ["i5"]
    served.post("/v1/feedback", {"item": "i5", "verdict": "undo"})
    assert "i5" in served.ids(k=24)
    assert served.post("/v1/feedback", {"item": "i5", "verdict": "like"})["event"] == 0
    assert served.get("/v1/history")[0]["kind"] == "like"
    assert "i5" not in served.ids(k=24)


def test_mute_and_boost_change_the_ranking_at_once(served: Served) -> None:
    served.record("i1")
    crime = {item.id for item in SHELF.items if "crime" in item.tags}
    served.client.put("/v1/interests", json={"tag": "crime", "factor": 0})
    assert not crime & set(served.ids(k=24))
    answer = served.client.put("/v1/interests", json={"tag": "CRIME", "factor": 8}).json()
    assert next(one for one in answer["interests"] if one["tag"] == "crime")["factor"] == 8
    boosted = served.slate(k=24)
    part = {one["item"]: one["parts"]["interests"] for one in boosted}
    assert all(value > 0 for item, value in part.items() if item in crime)
    assert all(value == 0 for item, value in part.items() if item not in crime)
    served.client.put("/v1/interests", json={"tag": "crime", "factor": 1})
    assert "interests" not in served.slate(k=1)[0]["parts"]
    assert served.client.put("/v1/interests", json={"tag": "crme", "factor": 2}).status_code == 400


def test_an_empty_search_is_the_feed_and_a_title_is_found(served: Served) -> None:
    assert [one["item"] for one in served.post("/v1/search", {"query": ""})["slate"]] == served.ids()
    found = served.post("/v1/search", {"query": "space", "k": 6})
    assert all("space" in one["tags"] for one in found["slate"])
    typo = served.post("/v1/search", {"query": "coking", "k": 6})
    assert typo["understood"]["corrected"] == {"coking": "cooking"}
    assert all("cooking" in one["tags"] for one in typo["slate"])
    assert "at most 300" in served.refused("/v1/search", {"query": "word " * 100})


def test_words_steer_and_are_told_as_they_were_understood(served: Served) -> None:
    served.record("i1")
    newer = served.post("/v1/recommend", {"k": 24, "steer": "newer"})
    assert newer["understood"]["steering"] == "newer"
    by_year = {one["item"]: one["parts"]["steering"] for one in newer["slate"]}
    assert by_year["i23"] > by_year["i10"] > by_year["i0"]
    like = served.post("/v1/recommend", {"k": 24, "like": "i6"})
    assert like["understood"]["steering"] == "more like this"
    assert "i6" not in [one["item"] for one in like["slate"]]
    odd = served.post("/v1/recommend", {"steer": "more like this"})["understood"]
    assert odd["ignored"][0][1] == "no item at hand that this could be"


def test_stages_are_off_by_default_and_say_what_they_moved(served: Served) -> None:
    served.record("i1", "i5", "i9")
    assert all(one["moves"] == [] and one["rank"] == one["score_rank"] for one in served.slate(k=10))
    capped = served.slate(k=24, slate={"cap_per_tag": 2})
    counts: dict[str, int] = {}
    for one in capped:
        for tag in one["tags"]:
            counts[tag] = counts.get(tag, 0) + 1
    assert max(counts.values()) <= 2
    moved = [move for one in served.slate(k=10, slate={"mmr": 3.0, "freshness": 2.0}) for move in one["moves"]]
    assert {move["stage"] for move in moved} <= {"mmr", "freshness"}
    assert all(move["said"].startswith(("up from", "down from")) for move in moved)
    assert len(moved) > 0


def test_settings_shape_the_slate_until_a_request_says_otherwise(served: Served) -> None:
    served.record("i1")
    plain = served.ids(k=10)
    served.client.patch("/v1/settings", json={"freshness": 1.0, "tail": 0.5})
    first = served.slate(k=10)
    assert [one["item"] for one in first] != plain
    assert "tail" in first[0]["parts"]
    assert any(move["stage"] == "freshness" for one in first for move in one["moves"])
    again = served.slate(k=10, slate={"freshness": 0})
    assert not any(one["moves"] for one in again)


def test_exploration_draws_once_between_events(served: Served) -> None:
    served.record("i1")
    asked = {"k": 10, "slate": {"exploration": 3.0}}
    first = served.ids(**asked)
    assert served.ids(**asked) == first
    served.record("i2", kind="impression")
    assert served.ids(**asked) != first


def test_personal_weights_are_learned_used_and_an_exact_part(served: Served) -> None:
    served.record(*(f"i{n}" for n in range(0, 16, 2)))
    before = served.slate(k=5)
    assert served.client.patch("/v1/settings", json={"personal": True}).json()["personal"] is True
    assert served.profile.personal.exists()
    weighted = served.slate(k=5)
    assert "personal" in weighted[0]["parts"]
    assert [one["score"] for one in weighted] != [one["score"] for one in before]
    for one in weighted:
        assert one["score"] == pytest.approx(sum(one["parts"].values()), abs=1e-4)
        assert served.post("/v1/explain", {"item": one["item"]})["score"] == pytest.approx(one["score"], abs=1e-4)


def test_similar_items_say_nothing_about_the_person(served: Served) -> None:
    before = served.post("/v1/similar", {"item": "i4", "k": 5})
    served.record("i4", "i8")
    assert served.post("/v1/similar", {"item": "i4", "k": 5}) == before
    near = [one["similarity"] for one in before]
    assert near == sorted(near, reverse=True)
    plain = served.person.shop.engine.plain
    assert near[0] == pytest.approx(float(np.sort(plain @ plain[4])[-2]), abs=1e-5)


def test_a_deadline_leaves_out_what_there_is_no_time_for(served: Served) -> None:
    served.record("i1")
    assert served.post("/v1/recommend", {"deadline_ms": 60_000})["stage"] == "adapter"
    late = served.post("/v1/recommend", {"deadline_ms": 1e-6})
    assert late["stage"] == "prior"
    assert all(one["parts"]["adapter"] == 0 for one in late["slate"])


def test_the_pace_forgets_a_slow_moment() -> None:
    pace = Pace()
    pace.took(100.0)
    assert pace.stage(50.0) == "prior"
    stages = [pace.stage(50.0) for _ in range(10)]
    assert stages[-1] == "adapter"
    pace.took(10.0)
    assert pace.adapter < 50.0


def test_a_large_catalogue_is_ranked_among_what_the_state_proposes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Served(tmp_path / "all") as small:
        small.record("i1", "i5")
        expected = [(one["item"], pytest.approx(one["score"], abs=1e-3)) for one in small.slate(k=5)]
    monkeypatch.setattr("client.adapted.WHOLE", 10)
    with Served(tmp_path / "some") as large:
        large.record("i1", "i5")
        assert large.person.shop.engine.now.candidates(count=8) is not None
        assert [(one["item"], one["score"]) for one in large.slate(k=5)] == expected
        for shown in large.slate(k=3, why=True):
            found = large.post("/v1/explain", {"item": shown["item"]})
            assert found["score"] == pytest.approx(shown["score"], abs=1e-3)
            assert found["rank"] == shown["rank"]
