"""Explanations over the API: parts and events add up, and a slate without an event is the slate without it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.service.small_service import LENGTH, Served

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path) as service:
        service.record("i1", "i2", "i5", "i9", "i4")
        yield service


def test_parts_and_events_add_up_to_the_score_that_was_shown(served: Served) -> None:
    for shown in served.slate(k=5, why=True):
        found = served.post("/v1/explain", {"item": shown["item"]})
        assert found["rank"] == shown["rank"]
        assert found["sentence"] == shown["why"]
        assert sum(found["parts"].values()) == pytest.approx(found["score"], abs=1e-4)
        assert found["score"] == pytest.approx(shown["score"], abs=1e-4)
        content = sum(event["content"] for event in found["events"])
        assert content == pytest.approx(found["parts"]["content"], abs=1e-3)
        assert {event["seq"] for event in found["events"]} <= set(range(1, 5))  # the window holds four


def test_the_reasons_of_a_search_and_of_an_instruction_are_parts_too(served: Served) -> None:
    shown = served.post("/v1/search", {"query": "space", "k": 1})["slate"][0]
    found = served.post("/v1/explain", {"item": shown["item"], "query": "space"})
    assert found["parts"]["query"] == pytest.approx(shown["parts"]["query"], abs=1e-4)
    assert 'your search for "space"' in found["sentence"]
    steered = served.post("/v1/explain", {"item": "i23", "steer": "newer"})
    assert steered["parts"]["steering"] > 0


def test_without_an_event_there_would_be_another_slate(served: Served) -> None:
    actual = served.ids(k=10)
    found = served.post("/v1/explain", {"item": actual[0], "without_event": 4, "k": 10})["counterfactual"]
    assert found["item"] == "i4"
    served.post("/v1/forget", {"confirm": "forget everything"})
    served.record("i1", "i2", "i5", "i9")  # what there would have been
    other = served.ids(k=10)
    assert [one["item"] for one in found["appeared"]] == [item for item in other if item not in actual]
    assert [one["item"] for one in found["vanished"]] == [item for item in actual if item not in other]
    assert "i4" in [one["item"] for one in found["appeared"]] or "i4" not in other
    assert found["said"].startswith('Without "Thing 4 (1984)"')


def test_an_item_that_was_met_twice_stays_seen_without_one_of_the_events(served: Served) -> None:
    served.record("i4")
    found = served.post("/v1/explain", {"item": "i7", "without_event": 5, "k": 20})["counterfactual"]
    assert "i4" not in [one["item"] for one in found["appeared"]]


def test_only_events_that_a_ranking_reads_can_be_taken_away(served: Served) -> None:
    assert f"newest {LENGTH}" in served.refused("/v1/explain", {"item": "i7", "without_event": 0})
    assert f"newest {LENGTH}" in served.refused("/v1/explain", {"item": "i7", "without_event": 99})
    assert "unknown id" in served.refused("/v1/explain", {"item": "nothing"})


def test_asking_why_changes_nothing(served: Served) -> None:
    before = served.slate(k=24)
    served.post("/v1/explain", {"item": "i7", "without_event": 4})
    assert served.slate(k=24) == before
    assert len(served.get("/v1/history")) == 5


def test_interests_are_readable_and_ordered(served: Served) -> None:
    found = served.get("/v1/interests")
    assert sum(one["share"] for one in found["interests"]) == pytest.approx(1.0)
    weights = [one["weight"] for one in found["interests"]]
    assert weights == sorted(weights, reverse=True)
    assert dict(map(tuple, found["catalogue"])) == {
        "long": 16,
        "short": 8,
        "crime": 6,
        "comedy": 6,
        "space": 6,
        "cooking": 6,
    }
