"""Explanations: shares that add up to what the ranker says, sentences that say no more, and slates without an event."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from client.evidence import Reading, event_shares
from client.explain import Asked, Counterfactual, explain, without_event
from client.ranker import recommend
from client.sentence import Facts, tell
from client.store import History, Store
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY
from shared.errors import DataError
from shared.prior import PRIOR
from shared.runtime import Runtime
from shared.schema import EventKind
from tests.client.small_device import ITEMS, LENGTH, SHELF, WITH_PRIOR, rows, tiny_runtime

pytestmark = pytest.mark.usefixtures("own_cache")
KINDS = [EventKind.CLICK, EventKind.SKIP, EventKind.LIKE, EventKind.IMPRESSION, EventKind.CLICK, EventKind.RATING]
SKIPS = {**WITH_PRIOR, "skip_penalty": 0.5, "gamma": 2.0, "beta": 0.3}


def past(items: list[int], kinds: list[EventKind] | None = None) -> History:
    store = Store(":memory:")
    store.replace(rows(items, kinds=kinds or ()))
    return store.history(0, SHELF)


HISTORY = past([1, 2, 3, 4, 5, 6], KINDS)


def installed(*, prior: dict[str, Any] | None = None, **model: Any) -> Runtime:
    """Everything off its start."""
    runtime = tiny_runtime(prior=prior, **model)
    generator = np.random.default_rng(2)
    arrays = {
        name: array + generator.normal(0, 0.3, array.shape).astype(np.float32)
        for name, array in runtime.start.arrays.items()
    }
    if runtime.scorer.layout is not None:
        size = (runtime.scorer.layout.features, runtime.scorer.layout.output)
        arrays[PRIOR] = generator.normal(0, 0.3, size).astype(np.float32)
    runtime.install(AdapterState({**arrays, POPULARITY: np.linspace(-1, 1, ITEMS, dtype=np.float32)}))
    return runtime


def reading_of(runtime: Runtime) -> Reading:
    return Reading.of(runtime.scorer, runtime.table)


def all_parts(runtime: Runtime, history: History) -> dict[str, np.ndarray]:
    """Parts of all unseen items as the ranker gives them, NaN where an item was seen."""
    found: dict[str, np.ndarray] = {}
    for one in recommend(runtime, history, k=ITEMS):
        for name, value in one.parts.items():
            found.setdefault(name, np.full(ITEMS, np.nan))[SHELF.index(one.item_id)] = value
    return found


@pytest.mark.parametrize("model", [{}, {"sharpness": 3.0, "content_whitening": 0.5}])
@pytest.mark.parametrize("prior", [None, SKIPS])
def test_event_shares_add_up_to_the_rankers_own_parts(model: dict[str, Any], prior: dict[str, Any] | None) -> None:
    runtime = installed(prior=prior, **model)
    reading = reading_of(runtime)
    for one in recommend(runtime, HISTORY, k=ITEMS):
        shares = event_shares(reading, HISTORY, SHELF.index(one.item_id))
        assert shares.positions.tolist() == [2, 3, 4, 5]  # the ranker reads four events
        assert shares.content.sum() == pytest.approx(one.parts["content"], abs=1e-4)
        assert shares.content[1] == 0  # an impression says nothing
        if prior:
            assert shares.floor + shares.prior.sum() == pytest.approx(one.parts["prior"], abs=1e-3)
            assert shares.prior[1] == 0
        else:
            assert not shares.prior.any()


def test_sharp_content_goes_to_events_by_their_softmax_shares() -> None:
    runtime = installed(sharpness=3.0)
    reading = reading_of(runtime)
    shares = event_shares(reading, past([1, 7]), 12)  # texts repeat every five items: 7 and 12 are alike, 1 is not
    likeness = reading.plain[[1, 7]] @ reading.plain[12]
    weight = np.array([0.5 ** (1 / reading.half_life), 1.0]) * np.exp(3.0 * likeness)
    assert shares.content / shares.content.sum() == pytest.approx(weight / weight.sum(), rel=1e-4)
    assert shares.content[1] > shares.content[0]


def test_an_item_the_prior_knows_nothing_of_has_only_the_floor() -> None:
    reading = reading_of(installed(prior=SKIPS))
    assert reading.prior is not None
    silent = dataclasses.replace(reading, prior=dataclasses.replace(reading.prior, matrix=0 * reading.prior.matrix))
    shares = event_shares(silent, HISTORY, 9)
    assert not shares.prior.any()
    assert shares.floor == pytest.approx(reading.prior.kappa * np.log(reading.prior.floor * reading.share[9]), rel=1e-4)


def test_a_persons_weights_scale_the_shares() -> None:
    runtime = installed(prior=SKIPS)
    plain = event_shares(reading_of(runtime), HISTORY, 9)
    own = event_shares(reading_of(runtime).weighted(np.array([2.0, 0.5, 0.0])), HISTORY, 9)
    assert own.content == pytest.approx(2 * plain.content)
    assert own.prior == pytest.approx(0.5 * plain.prior)
    assert own.floor == pytest.approx(0.5 * plain.floor)


def test_an_explanation_adds_up_and_says_which_shares_are_exact() -> None:
    runtime = installed(prior=SKIPS)
    parts = all_parts(runtime, HISTORY)
    best = recommend(runtime, HISTORY, k=1)[0]
    item = SHELF.index(best.item_id)
    found = explain(item, parts=parts, reading=reading_of(runtime), history=HISTORY, catalogue=SHELF)
    assert found.score == pytest.approx(best.score, abs=1e-4)
    assert found.above["content"] == pytest.approx(parts["content"][item] - np.nanmean(parts["content"]))
    assert found.exact == {"content": "exact", "adapter": "none", "popularity": "none", "prior": "apportioned"}
    sizes = [abs(event.total) for event in found.events]
    assert sizes == sorted(sizes, reverse=True)
    assert {event.title for event in found.events} <= {SHELF.items[int(i)].title for i in HISTORY.items[-LENGTH:]}
    seen = int(HISTORY.items[0])
    with pytest.raises(DataError, match="expected an item that is ranked"):
        explain(seen, parts=parts, reading=reading_of(runtime), history=HISTORY, catalogue=SHELF)
    sharp = reading_of(installed(sharpness=3.0))
    assert explain(9, parts={"content": np.zeros(ITEMS)}, reading=sharp, history=HISTORY, catalogue=SHELF).exact == {
        "content": "apportioned"
    }


def lifted(part: str, *, reading: Reading, history: History = HISTORY, item: int = 23, **asked: Any) -> str:
    """The sentence for an item that one part alone lifts."""
    only = np.zeros(ITEMS)
    only[item] = 1.0
    given = Asked(**asked)
    return explain(item, parts={part: only}, reading=reading, history=history, catalogue=SHELF, asked=given).sentence


def test_the_sentence_names_what_carries_the_item_and_nothing_else() -> None:
    reading = reading_of(installed())
    assert lifted("popularity", reading=reading) == "Popular with everyone: number 1 of 24."
    assert lifted("popularity", reading=reading, item=3).startswith("No single reason")  # carried, but not popular
    assert lifted("query", reading=reading, query='he"at\u202e') == 'It matches your search for "he\'at".'
    assert lifted("tail", reading=reading) == "You asked for what is less well known."
    assert lifted("steering", reading=reading, steering='newer; less "dark"').endswith('newer; less "dark".')
    assert lifted("interests", reading=reading, boosted=["Comedy"]).startswith("No single")  # the item has no such tag
    assert lifted("content", reading=reading, history=past([3]), item=23) == (
        'Because you turned to "Thing 3"; its description is close to that of "Thing 3".'
    )
    assert lifted("content", reading=reading, history=past([]), item=23).startswith("No single reason")
    assert lifted("unheard-of", reading=reading).startswith("No single reason")


def test_people_who_are_said_to_go_on_must_be_in_the_prior() -> None:
    reading = reading_of(installed(prior=SKIPS))
    assert reading.prior is not None
    history, item = past([3]), 7
    prior = reading.prior
    source, target = prior.codes[3, :10], prior.codes[item, : prior.matrix.shape[1]]
    matrix = np.zeros_like(prior.matrix)
    matrix[:10] = np.outer(source, target)
    matrix *= 1.0 / float(source @ source * (target @ target))  # q of the item is 1 after event 3
    knows = dataclasses.replace(reading, prior=dataclasses.replace(prior, matrix=matrix))
    said = lifted("prior", reading=knows, history=history, item=item)
    assert said == 'Because you turned to "Thing 3"; people who turned to "Thing 3" often go on to this.'
    doubts = dataclasses.replace(reading, prior=dataclasses.replace(prior, matrix=1e-6 * matrix))
    assert "often go on" not in lifted("prior", reading=doubts, history=history, item=item)
    assert lifted("prior", reading=doubts, history=history, item=23) == "Popular with everyone: number 1 of 24."


def test_a_sentence_keeps_hostile_titles_on_one_line_and_short() -> None:
    title = '<b>Ignore\u202e all\n"rules"</b>' + "x" * 500
    said = tell(Facts(carriers=["content"], because=[title], alike=title))
    assert said.isprintable()
    assert len(said) < 260
    assert "<b>Ignore all 'rules'</b>" in said  # text, for a page to escape


# --- without an event --------------------------------------------------------------------------------------


def test_without_an_event_the_rest_of_the_history_is_ranked_again() -> None:
    runtime = installed()

    def slate(history: History) -> list[int]:
        return [SHELF.index(one.item_id) for one in recommend(runtime, history, k=8)]

    found = without_event(HISTORY, 5, slate=slate)
    assert found.item == 6
    assert list(found.before) == slate(HISTORY)
    assert list(found.after) == slate(past([1, 2, 3, 4, 5], KINDS[:5]))
    assert {item for item, _ in found.appeared} == set(found.after) - set(found.before)
    assert {item for item, _ in found.vanished} == set(found.before) - set(found.after)


def test_differences_by_hand() -> None:
    found = Counterfactual(item=9, before=(1, 2, 3), after=(2, 1, 9))
    assert found.appeared == [(9, 3)]
    assert found.vanished == [(3, 3)]
    assert found.moved == [(1, 1, 2), (2, 2, 1)]


def test_an_event_that_is_not_there_is_refused() -> None:
    for position in (-1, 6):
        with pytest.raises(DataError, match="of a history of 6"):
            without_event(HISTORY, position, slate=lambda history: [])
