"""What an app may report, and what it is told about anything else."""

from __future__ import annotations

import math

import pytest

from client.events import CLOCK_SKEW, NewEvent
from shared.catalogue import Catalogue
from shared.errors import CatalogueError, DataError
from shared.schema import EventKind, Item

SHELF = Catalogue(tuple(Item(id=name, title=name, text=name) for name in ("tea-1", "tea-2", "cup-7", "pot")))
NOW = 1_700_000_000.0


def test_what_is_not_said_is_filled_in() -> None:
    known = NewEvent("pot").checked(SHELF, now=NOW)
    assert (known.item, known.time, known.kind, known.value) == ("pot", NOW, EventKind.CLICK, None)


@pytest.mark.parametrize("kind", list(EventKind))
def test_a_kind_may_be_given_by_its_name(kind: EventKind) -> None:
    assert NewEvent("pot", kind.label).checked(SHELF, now=NOW).kind is kind
    assert NewEvent("pot", kind).checked(SHELF, now=NOW).kind is kind


@pytest.mark.parametrize("time", [0.0, NOW - 1e9, NOW, NOW + CLOCK_SKEW])
def test_times_up_to_a_clock_that_is_a_little_fast_are_taken(time: float) -> None:
    assert NewEvent("pot", time=time, value=4).checked(SHELF, now=NOW).time == time


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (NewEvent("pot", time=NOW + CLOCK_SKEW + 1), "Check the clock"),
        (NewEvent("pot", time=NOW * 1000), "This looks like milliseconds: divide by 1000"),
        (NewEvent("pot", time=-1.0), "expected seconds UTC since 1970"),
        (NewEvent("pot", time=math.nan), "found nan"),
        (NewEvent("pot", time=math.inf), "found inf"),
        (NewEvent("pot", value=math.nan), "value: found nan; expected a finite number"),
        (NewEvent("pot", value=-math.inf), "value: found -inf"),
        (NewEvent("pot", "purchse"), "kind: found 'purchse'; expected one of impression, .* Did you mean 'purchase'"),
        (NewEvent("pot", ""), "kind: found ''; expected one of"),
        (NewEvent("pot", "x" * 100_000), "found 'x{60}'; expected"),
    ],
)
def test_anything_else_is_refused_and_says_what_to_do(event: NewEvent, words: str) -> None:
    with pytest.raises(DataError, match=words):
        event.checked(SHELF, now=NOW)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("tea-3", "found the unknown id 'tea-3'; expected one of 4 items; did you mean 'tea-"),
        ("Tea-1", "did you mean 'tea-1'"),
        ("xea-1", "did you mean 'tea-1'"),
        ("nothing like it", "the first is 'tea-1'"),
        ("", "found the unknown id ''"),
        ("x" * 1_000_000, r"found the unknown id 'x{60}\.\.\.'; expected"),
    ],
)
def test_an_unknown_item_is_answered_with_the_closest(item: str, words: str) -> None:
    with pytest.raises(CatalogueError, match=words):
        NewEvent(item).checked(SHELF, now=NOW)


def test_only_a_bounded_part_of_a_large_catalogue_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def count(word: str, known: list[str], n: int) -> list[str]:
        compared.append(len(known))
        return []

    monkeypatch.setattr("client.events.get_close_matches", count)
    large = Catalogue(tuple(Item(id=f"a{n:05}", title="t", text="t") for n in range(5_000)))
    with pytest.raises(CatalogueError):
        NewEvent("axxxxx").checked(large, now=NOW)
    assert compared == [2_000]
