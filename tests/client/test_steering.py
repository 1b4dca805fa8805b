"""Steering: how instructions are understood, and that the understood part moves items the right way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.scale import spread
from client.steering import MAX_CLAUSES, MAX_INSTRUCTION, Phrase, Steering, describe, steer, understand
from client.tags import item_years
from shared.errors import DataError
from tests.client.test_search import FILMS, searcher

YEARS = item_years(FILMS)


def read(instruction: str) -> list[tuple[str, str, float, int | None] | str]:
    return [
        one if isinstance(one, str) else (one.kind, one.text, one.weight, one.year) for one in understand(instruction)
    ]


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("more like this but newer", [("item", "like this", 1.0, None), ("years", "newer", 1.0, None)]),
        ("less dark", [("meaning", "dark", -1.0, None)]),
        ("for children", [("meaning", "children", 1.0, None)]),
        ("something for children, not too scary",
         [("meaning", "children", 1.0, None), ("meaning", "scary", -2.0, None)]),
        ("without violence", [("meaning", "violence", -2.0, None)]),
        ("much less dark and violent but funny",
         [("meaning", "dark", -2.0, None), ("meaning", "violent", -1.0, None), ("meaning", "funny", 1.0, None)]),
        ("less dark more funny", [("meaning", "dark", -1.0, None), ("meaning", "funny", 1.0, None)]),
        ("a bit older", [("years", "older", -0.5, None)]),
        ("newer than 1990", [("years", "newer than 1990", 1.0, 1990)]),
        ("comedies before 1980", [("meaning", "comedies", 1.0, None), ("years", "before 1980", -1.0, 1980)]),
        ("without horror much older than 1960",
         [("meaning", "horror", -2.0, None), ("years", "older than 1960", -2.0, 1960)]),
        ("not newer", [("years", "newer", -2.0, None)]),
        ("similar to this", [("item", "similar to this", 1.0, None)]),
        ("less", ["less"]),
        ("", []),
        ("!?,", []),
    ],
)  # fmt: skip
def test_instructions_are_understood_as(instruction: str, expected: list) -> None:
    assert read(instruction) == expected


def test_the_statement_says_what_was_understood() -> None:
    phrases = tuple(
        one
        for one in understand("more like this but newer, much less dark and without pain")
        if isinstance(one, Phrase)
    )
    assert describe(Steering(np.zeros(1, np.float32), phrases, ())) == (
        'more like this; newer; much less "dark"; much less "pain"'
    )


def part(instruction: str, item: int | None = None) -> Steering:
    return steer(instruction, scores=np.arange(6.0), searcher=searcher(), years=YEARS, item=item)


def test_towards_and_away_are_opposites_in_units_of_the_spread() -> None:
    towards, away = part("more robots").part, part("less robots").part
    assert towards == pytest.approx(-away)
    assert FILMS.items[int(towards.argmax())].title == "The Matrix (1999)"
    assert towards.std() == pytest.approx(spread(np.arange(6.0)), rel=1e-5)
    assert part("not robots").part == pytest.approx(2 * away, rel=1e-5)


def test_newer_follows_the_years_and_a_named_year_splits() -> None:
    assert np.argsort(-part("newer").part)[0] == 3  # 2001
    assert np.argsort(-part("older").part)[0] == 1  # 1967
    split = part("older than 1990").part
    assert set(np.flatnonzero(split > 0)) == {1, 5}


def test_like_this_needs_an_item() -> None:
    assert part("more like this", item=2).part.argmax() == 2
    alone = part("more like this")
    assert alone.ignored == (("like this", "no item at hand that this could be"),)
    assert not alone.part.any()


def test_what_cannot_be_said_is_named() -> None:
    found = part("xqzvw but less")
    assert [why for _, why in found.ignored] == ["no item is near to it", "no relation or phrase that is understood"]
    blind = steer("newer", scores=np.zeros(6), searcher=searcher(), years=np.full(6, np.nan))
    assert blind.ignored == (("newer", "no item of the catalogue says its year"),)
    assert blind.phrases == ()


def test_an_instruction_has_limits() -> None:
    with pytest.raises(DataError, match=f"expected at most {MAX_INSTRUCTION}"):
        understand("x" * 1_000_000)
    many = understand(", ".join("abcdefghijkl"))
    assert len(many) == MAX_CLAUSES + 1
    assert isinstance(many[-1], str)


@given(st.text(max_size=MAX_INSTRUCTION))
@settings(max_examples=100, deadline=None)
def test_any_text_is_understood_or_named_and_stays_printable(text: str) -> None:
    for one in understand(text):
        said = one if isinstance(one, str) else one.text
        assert said
        assert said.isprintable()
