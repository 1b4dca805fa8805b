"""The state kept for ranking: equal to ranking the whole history, never stale, never a mix of two adapters."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from client import adapted
from client.candidates import Proposer
from client.full import FullEngine
from client.product import Product
from client.ranker import score_catalogue
from client.session import Parts, Session
from client.store import History
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY
from shared.catalogue import Catalogue
from shared.config_rules import CONTEXTS
from shared.errors import AdapterError, DataError
from shared.model import Stage
from shared.prior import PRIOR
from shared.runtime import Runtime, runtime_for
from shared.schema import Event, EventKind, Item
from tests.client.small_device import LENGTH, WITH_PRIOR, tiny_config
from tests.tiny_models import TINY_FAMILIES

pytestmark = pytest.mark.usefixtures("own_cache")

#: No two items alike, and more of them than the tiny backbones are wide: there is room for identity directions.
ITEMS = 48
SHELF = Catalogue(tuple(Item(id=f"i{n}", title=f"Thing {n}", text=f"thing{n} of group{n % 7}") for n in range(ITEMS)))
STAGES: tuple[Stage, ...] = ("start", "prior", "adapter")
SKIPS_COUNT = {**WITH_PRIOR, "skip_penalty": 0.4}
#: Everything that a history can tell the model.
ALL = {"context": list(CONTEXTS), "input_rank": 2, "identity": 12, "input_codes": 40}
ABOUT = {"age": "25-34", "country": "NZ"}
CLICK = EventKind.CLICK


def event(item: int, kind: EventKind = CLICK, *, time: float = float("nan")) -> Event:
    return Event(item, time, kind)


@st.composite
def pasts(draw: st.DrawFn, longest: int = 3 * LENGTH) -> list[Event]:
    """Events of all kinds, a second to years apart, times and values sometimes unknown."""
    size = draw(st.integers(0, longest))
    now, events = 0.0, []
    for _ in range(size):
        now += 10.0 ** draw(st.floats(0, 8))
        known = draw(st.booleans())
        value = draw(st.sampled_from([float("nan"), 0.5, 3.0, 40.0]))
        kind = draw(st.sampled_from(list(EventKind)))
        events.append(Event(draw(st.integers(0, ITEMS - 1)), now if known else float("nan"), kind, value))
    return events


def history(events: Sequence[Event], about: Mapping[str, str] = ABOUT) -> History:
    return History(
        items=np.array([e.item for e in events], dtype=np.int64),
        times=np.array([e.time for e in events], dtype=np.float64),
        kinds=np.array([int(e.kind) for e in events], dtype=np.int64),
        roles=np.zeros(len(events), dtype=np.int64),
        values=np.array([e.value for e in events], dtype=np.float64),
        attributes=about,
    )


def adapter(runtime: Runtime, *, seed: int) -> AdapterState:
    """Every parameter off its start, a random popularity, and a random prior where there is room for one."""
    generator = np.random.default_rng(seed)
    arrays = {
        name: array + generator.normal(0, 0.3, array.shape).astype(np.float32)
        for name, array in runtime.start.arrays.items()
    }
    arrays[POPULARITY] = generator.normal(size=ITEMS).astype(np.float32)
    if (layout := runtime.scorer.layout) is not None:
        arrays[PRIOR] = generator.normal(0, 0.3, (layout.features, layout.output)).astype(np.float32)
    return AdapterState(arrays)


def ready(*, prior: Mapping[str, Any] | None = None, **model: Any) -> Runtime:
    runtime = runtime_for(tiny_config(prior=prior, **model), SHELF)
    runtime.install(adapter(runtime, seed=2))
    return runtime


def total(parts: Parts) -> NDArray[np.float32]:
    return np.sum(list(parts.values()), axis=0, dtype=np.float32)


def assert_equals_the_whole(session: Session, runtime: Runtime, events: Sequence[Event]) -> None:
    for stage in STAGES:
        expected = score_catalogue(runtime, [history(events)], stage=stage)[0]
        parts = session.scores(stage=stage)
        assert all(part.shape == (ITEMS,) and part.dtype == np.float32 for part in parts.values())
        np.testing.assert_allclose(total(parts), expected, rtol=1e-4, atol=1e-4)


def trunk_calls(session: Session) -> list[int]:
    """How many events the trunk reads in each call from now on."""
    lengths: list[int] = []
    trunk = session.now.ranker.scorer.trunk
    trunk.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    return lengths


# --- the same as ranking the whole history ------------------------------------------------------------------


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize("prior", [None, SKIPS_COUNT], ids=["no prior", "prior"])
@settings(deadline=None, max_examples=5)
@given(events=pasts(), known=st.integers(0, 3 * LENGTH), every=st.integers(2, 5))
def test_after_any_events_it_scores_like_the_whole_history(
    family: str, prior: Mapping[str, Any] | None, events: list[Event], known: int, every: int
) -> None:
    runtime = ready(prior=prior, backbone=f"tiny-{family}", **ALL)
    session = Session(runtime, history(events[:known]))
    for number, one in enumerate(events[known:], start=known + 1):
        session.add(one)
        if number % every == 0:
            assert_equals_the_whole(session, runtime, events[:number])
    assert_equals_the_whole(session, runtime, events)


@pytest.mark.parametrize("prior", [None, {**SKIPS_COUNT, "gamma": 2.0, "beta": 0.5}], ids=["no prior", "prior"])
@settings(deadline=None, max_examples=5)
@given(events=pasts(), known=st.integers(0, LENGTH))
def test_sharp_content_scores_like_the_whole_history(
    prior: Mapping[str, Any] | None, events: list[Event], known: int
) -> None:
    runtime = ready(prior=prior, sharpness=12.0, content_half_life=0.7, content_whitening=0.5)
    session = Session(runtime, history(events[:known]))
    for number, one in enumerate(events[known:], start=known + 1):
        session.add(one)
        assert_equals_the_whole(session, runtime, events[:number])


@pytest.mark.parametrize(
    "model",
    [
        {"content_half_life": 1e6},
        {"content_half_life": 40.0, "history": 64},
        {"content_half_life": 1e6, "sharpness": 25.0, "history": 16},
        {"content_half_life": 0.1, "sharpness": 25.0, "history": 64},
    ],
    ids=["endless", "long", "endless and sharp", "short and sharp"],
)
def test_ten_thousand_events_leave_no_error_behind(model: dict[str, Any]) -> None:
    """Also not when the window that is left holds a single event that counts, then none."""
    runtime = ready(prior={**SKIPS_COUNT, "half_lives": [0.5, 1e6], "gamma": 2.0}, **model)
    generator = np.random.default_rng(4)
    items, kinds = generator.integers(0, ITEMS, 10_000).tolist(), generator.integers(0, 6, 10_000).tolist()
    events = [event(item, EventKind(kind)) for item, kind in zip(items, kinds, strict=True)]
    session = Session(runtime, history([]))
    length = runtime.config.model.history
    events += [event(3), *[event(5, EventKind.IMPRESSION)] * length]
    for number, one in enumerate(events, start=1):
        session.add(one)
        if number in (5_000, 10_000, 10_001, 10_000 + length // 2, 10_000 + length, 10_001 + length):
            for stage in STAGES[:2]:
                expected = score_catalogue(runtime, [history(events[:number])], stage=stage)[0]
                np.testing.assert_allclose(total(session.scores(stage=stage)), expected, rtol=1e-4, atol=1e-4)
    past = session.now.past
    assert past.mass == 0.0
    assert not past.content.any()
    assert not past.features.any()


def test_sums_by_hand() -> None:
    """Half-lives of one event and of two; a skip counts -0.4, an impression nothing, both make the others older."""
    runtime = ready(prior={**SKIPS_COUNT, "half_lives": [1.0, 2.0]}, content_half_life=1.0)
    kinds = [CLICK, EventKind.SKIP, EventKind.IMPRESSION, EventKind.LIKE]
    past = Session(runtime, history([event(item, kind) for item, kind in enumerate(kinds)])).now.past
    plain, codes = runtime.table.plain.numpy(), runtime.table.codes.numpy()
    np.testing.assert_allclose(past.content, plain[3] + plain[0] / 8, atol=1e-6)
    assert past.mass == pytest.approx(1.125)
    first = codes[3, :10] - 0.1 * codes[1, :10] + codes[0, :10] / 8
    second = codes[3, :6] - 0.2 * codes[1, :6] + 0.5**1.5 * codes[0, :6]
    np.testing.assert_allclose(past.features, [*first, *second], atol=1e-6)
    assert past.count == 4
    assert np.flatnonzero(past.seen).tolist() == [0, 1, 3]


def test_parts_are_those_of_the_score() -> None:
    runtime = ready(prior={**WITH_PRIOR, "gamma": 2.0, "beta": 0.7})
    session = Session(runtime, history([event(1), event(2)]))
    assert set(session.scores(stage="start")) == {"content", "adapter", "popularity"}
    parts = session.scores()
    assert set(parts) == {"content", "adapter", "popularity", "prior"}
    np.testing.assert_allclose(parts["popularity"], 0.7 * runtime.table.rows[:, -1], rtol=1e-6)
    mean = (runtime.table.plain[2] + 0.5**0.5 * runtime.table.plain[1]) / (1 + 0.5**0.5)
    np.testing.assert_allclose(parts["content"], 2.0 * (runtime.table.plain @ mean), atol=1e-5)
    early = session.scores(stage="prior")
    assert not early["adapter"].any()
    assert np.array_equal(early["prior"], parts["prior"])
    assert np.abs(parts["adapter"]).max() > 0.1


def test_a_state_is_scored_once_and_its_parts_are_nobodys_to_change() -> None:
    session = Session(ready(prior=WITH_PRIOR), history([event(1)]))
    parts = session.scores()
    parts["content"] = parts.pop("prior")
    again = session.scores()
    assert set(again) == {"content", "adapter", "popularity", "prior"}
    assert again["content"] is not parts["content"]
    assert again["popularity"] is parts["popularity"]
    with pytest.raises(ValueError, match="read-only"):
        again["popularity"][0] = 1.0
    session.add(event(2))
    assert np.abs(session.scores()["prior"] - again["prior"]).max() > 1e-3


# --- some of the items --------------------------------------------------------------------------------------


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("prior", [None, SKIPS_COUNT], ids=["no prior", "prior"])
@pytest.mark.parametrize("model", [{}, {"sharpness": 12.0}, {"output_rank": 3}, ALL], ids=str)
@pytest.mark.parametrize("items", [[], [5], [40, 3, 3, 17]], ids=str)
def test_parts_of_some_items_are_those_of_all_there(
    large: bool,
    prior: Mapping[str, Any] | None,
    model: dict[str, Any],
    items: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = ready(prior=prior, **model)
    monkeypatch.setattr(adapted, "WHOLE", 0 if large else ITEMS)
    wanted = np.array(items, dtype=np.int64)
    kinds = [CLICK, EventKind.SKIP, EventKind.IMPRESSION, EventKind.LIKE, CLICK]
    for size in (0, 1, 5):
        session = Session(runtime, history([event(n, kind) for n, kind in enumerate(kinds[:size])]))
        for stage in STAGES:
            whole, some = session.scores(stage=stage), session.now.scores(stage=stage, items=wanted)
            assert set(some) == set(whole)
            for name, part in some.items():
                assert part.dtype == np.float32
                np.testing.assert_allclose(part, whole[name][wanted], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("prior", [None, {**SKIPS_COUNT, "gamma": 2.0, "beta": 0.5}], ids=["no prior", "prior"])
@pytest.mark.parametrize("sharpness", [0.0, 5.0])
def test_what_is_worth_scoring_holds_the_best(
    prior: Mapping[str, Any] | None, sharpness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = ready(prior=prior, sharpness=sharpness)
    session = Session(runtime, history([event(item) for item in (3, 9, 30)]))
    assert session.now.candidates() is None  # so few are all scored
    monkeypatch.setattr(adapted, "WHOLE", 0)
    monkeypatch.setattr("client.candidates.WHOLE", 0)
    allowed = np.ones(ITEMS, dtype=np.bool_)
    allowed[::3] = False
    for stage in STAGES:
        found = session.now.candidates(stage=stage, count=20, allowed=allowed)
        assert found is not None
        assert len(set(found.tolist())) == 20
        assert allowed[found].all()
        scores = np.where(allowed, total(session.scores(stage=stage)), -np.inf)
        assert set(np.argsort(-scores)[:12].tolist()) <= set(found.tolist())
    many = session.now.candidates(count=ITEMS + 5)
    assert many is not None
    assert many.tolist() == list(range(ITEMS))


def test_what_a_large_catalogue_needs_serves_the_next_adapter_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapted, "WHOLE", 0)
    monkeypatch.setattr("client.candidates.WHOLE", 0)
    runtime = ready(prior=WITH_PRIOR)
    session = Session(runtime, history([event(1), event(2)]))
    before = session.now.ranker.shelves.proposer
    state = adapter(runtime, seed=5)
    assert session.install(state) is None
    assert session.now.ranker.shelves.proposer is before
    runtime.install(state)
    assert_equals_the_whole(session, runtime, [event(1), event(2)])
    found = session.now.candidates(count=10)
    assert found is not None
    assert set(np.argsort(-total(session.scores()))[:5].tolist()) <= set(found.tolist())


def test_an_engine_is_ready_for_a_large_catalogue_before_anyone_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapted, "WHOLE", 0)
    runtime, built = ready(prior=WITH_PRIOR), []
    monkeypatch.setattr(adapted, "Proposer", lambda *tables: built.append(tables) or Proposer(*tables))
    engine = FullEngine(runtime, history([event(1)]))
    ((taste, codes),) = built
    assert taste.shape == (ITEMS, runtime.table.rows.shape[1] - 1)
    assert codes.shape == (ITEMS, WITH_PRIOR["output"])
    for _ in range(2):
        assert engine.now.candidates(count=ITEMS) is not None
    assert len(built) == 1


@pytest.mark.parametrize(("count", "beforehand"), [(4, True), (40, False)])
def test_matrices_are_multiplied_beforehand_where_that_leaves_less_to_read(count: int, beforehand: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix, vectors = torch.randn(8, 6, generator=generator), torch.randn(count, 6, generator=generator)
    x = torch.randn(8, generator=generator)
    product = Product.of(matrix, vectors)
    assert (product.both is not None) == beforehand
    torch.testing.assert_close(product(x), x @ matrix @ vectors.T)
    torch.testing.assert_close(product(x, torch.tensor([3, 1])), (x @ matrix @ vectors.T)[[3, 1]])


def test_items_seen_before_the_window_stay_seen() -> None:
    session = Session(ready(), history([event(item) for item in range(2 * LENGTH)]))
    session.add(event(20, EventKind.IMPRESSION))
    session.add(event(21, EventKind.SKIP))
    assert np.flatnonzero(session.now.past.seen).tolist() == [*range(2 * LENGTH), 21]
    assert session.now.past.count == 2 * LENGTH + 2


@pytest.mark.parametrize("item", [-1, ITEMS])
def test_an_event_on_an_unknown_item_is_refused_and_changes_nothing(item: int) -> None:
    session = Session(ready(), history([event(1)]))
    before = session.now
    with pytest.raises(DataError, match=f"item number {item}; this catalogue has 0 to {ITEMS - 1}"):
        session.add(event(item))
    assert session.now is before


def test_another_history_takes_the_place_of_all_events() -> None:
    runtime = ready(prior=WITH_PRIOR, **ALL)
    session = Session(runtime, history([event(1), event(2)]))
    session.scores()
    session.replace(history([event(1), event(2)], {"age": "50+"}))
    expected = score_catalogue(runtime, [history([event(1), event(2)], {"age": "50+"})])[0]
    np.testing.assert_allclose(total(session.scores()), expected, rtol=1e-4, atol=1e-4)
    session.replace(history([]))
    assert_equals_the_whole(session, runtime, [])
    assert not session.now.past.seen.any()


# --- what one more event costs the trunk --------------------------------------------------------------------


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_every_family_reads_new_events_only_until_the_window_slides(family: str) -> None:
    """And reads them right: breaks of a second to months, other hours and values, likes and skips."""
    runtime = ready(backbone=f"tiny-{family}", **ALL)
    kinds = [CLICK, EventKind.SKIP, EventKind.RATING, EventKind.LIKE, CLICK]
    events = [Event(7 * n, 10.0 ** (2 * n), kind, float(n)) for n, kind in enumerate(kinds)]
    session = Session(runtime, history(events[:2]))
    lengths = trunk_calls(session)
    session.scores(stage="prior")
    assert lengths == []
    for number, expected in enumerate(([2], [2, 1], [2, 1, 1], [2, 1, 1, LENGTH]), start=2):
        assert_equals_the_whole(session, runtime, events[:number])
        session.scores()
        assert lengths == expected
        if number < len(events):
            session.add(events[number])


def test_events_that_came_without_a_ranking_are_read_together() -> None:
    session = Session(ready(), history([event(1)]))
    lengths = trunk_calls(session)
    session.scores()
    session.add(event(2))
    session.scores(stage="prior")
    session.add(event(3))
    assert lengths == [1]
    session.scores()
    assert lengths == [1, 2]


def test_many_who_rank_the_same_moment_read_it_once() -> None:
    session = Session(ready(), history([event(1), event(2)]))
    lengths = trunk_calls(session)
    threads = [threading.Thread(target=session.scores) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lengths == [2]


# --- another adapter ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [None, WITH_PRIOR], ids=["no prior", "prior"])
@pytest.mark.parametrize("sharpness", [0.0, 5.0])
def test_a_new_adapter_ranks_at_once_and_the_runtime_stays_as_it_was(
    prior: Mapping[str, Any] | None, sharpness: float
) -> None:
    runtime = ready(prior=prior, sharpness=sharpness)
    events = [event(item) for item in range(2 * LENGTH)]
    session = Session(runtime, history(events))
    earlier, old = session.now, total(session.scores())
    state = adapter(runtime, seed=5)
    assert session.install(state) is None
    np.testing.assert_allclose(score_catalogue(runtime, [history(events)])[0], old, rtol=1e-4, atol=1e-4)
    assert np.array_equal(total(earlier.scores()), old)
    new = total(session.scores())
    assert np.abs(new - old).max() > 0.5
    runtime.install(state)
    assert_equals_the_whole(session, runtime, events)
    session.add(event(20))
    assert_equals_the_whole(session, runtime, [*events, event(20)])


def test_what_is_installed_in_the_runtime_later_is_not_the_sessions() -> None:
    runtime = ready(prior=WITH_PRIOR)
    session = Session(runtime, history([event(1)]))
    before = total(session.now.scores())
    runtime.install(adapter(runtime, seed=5))
    session.replace(history([event(1)]))
    assert np.array_equal(total(session.scores()), before)


def test_an_adapter_without_popularity_keeps_it_and_without_prior_has_none() -> None:
    runtime = ready(prior=WITH_PRIOR)
    session = Session(runtime, history([event(1)]))
    arrays = dict(adapter(runtime, seed=5).arrays)
    del arrays[POPULARITY], arrays[PRIOR]
    assert session.install(AdapterState(arrays)) is None
    runtime.install(AdapterState(arrays))
    assert runtime.scorer.prior is None
    assert_equals_the_whole(session, runtime, [event(1)])


def broken(runtime: Runtime) -> dict[str, tuple[AdapterState, str]]:
    """States that must not be installed, and words of the reason."""
    arrays = adapter(runtime, seed=5).arrays
    huge = {name: np.full_like(array, 3e38) for name, array in arrays.items() if name.startswith("output")}
    return {
        "not finite": (AdapterState({**arrays, "gamma.weight": np.array([np.nan])}), "entries that are not finite"),
        "too large": (AdapterState({**arrays, **huge}), "adapter part is not one finite number"),
        "popularity": (AdapterState({**arrays, POPULARITY: np.zeros(ITEMS + 1)}), "expected \\(48,\\)"),
        "names": (AdapterState({name: a for name, a in arrays.items() if name != "gamma.weight"}), "'gamma.weight'"),
        "shape": (AdapterState({**arrays, "gamma.weight": np.zeros(2)}), "expected \\(1,\\)"),
        "prior": (AdapterState({**arrays, PRIOR: np.zeros((3, 2))}), "found a prior of shape \\(3, 2\\)"),
    }


@pytest.mark.parametrize("case", ["not finite", "too large", "popularity", "names", "shape", "prior"])
@pytest.mark.parametrize("items", [[], [1, 2]], ids=["no history", "history"])
def test_an_adapter_that_fails_its_check_changes_nothing(case: str, items: list[int]) -> None:
    runtime = ready()
    session = Session(runtime, history([event(item) for item in items]))
    before, scores = session.now, total(session.scores())
    state, words = broken(runtime)[case]
    error = session.install(state)
    assert isinstance(error, AdapterError)
    with pytest.raises(AdapterError, match=words):
        raise error
    assert session.now is before
    assert np.array_equal(total(session.scores()), scores)
    assert session.install(adapter(runtime, seed=5)) is None


def test_events_recorded_while_an_adapter_is_installed_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = ready(prior=WITH_PRIOR)
    session = Session(runtime, history([event(1)]))
    check = type(session.now).check

    def interrupted(snapshot: Any) -> None:
        check(snapshot)
        session.add(event(2))

    monkeypatch.setattr(type(session.now), "check", interrupted)
    state = adapter(runtime, seed=5)
    assert session.install(state) is None
    lengths = trunk_calls(session)
    runtime.install(state)
    assert_equals_the_whole(session, runtime, [event(1), event(2)])
    assert lengths == [1]


# --- many at once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [None, WITH_PRIOR], ids=["no prior", "prior"])
def test_fifty_rank_while_one_records_and_one_installs(prior: Mapping[str, Any] | None) -> None:
    """Each ranking is that of one adapter and one history that were in force while it ran."""
    runtime = ready(prior=prior)
    events = [event(item) for item in np.random.default_rng(6).permutation(ITEMS)[:20].tolist()]
    states = [adapter(runtime, seed=seed) for seed in (2, 5)]
    prefixes = [history(events[:size]) for size in range(len(events) + 1)]
    scores = []
    for state in states:
        runtime.install(state)
        scores.append(score_catalogue(runtime, prefixes))
    expected = np.stack(scores)  # (2, events + 1, N)
    runtime.install(states[0])
    session = Session(runtime, history([]))
    swaps = 5
    begun, done = {"add": 0, "install": 0}, {"add": 0, "install": 0}
    problems: list[BaseException] = []

    def act(name: str, times: int) -> None:
        for number in range(times):
            begun[name] = number + 1
            if name == "add":
                session.add(events[number])
            else:
                assert session.install(states[(number + 1) % 2]) is None
            done[name] = number + 1

    def rank() -> None:
        while True:
            last = done["add"] == len(events) and done["install"] == swaps
            first = dict(done)
            found = total(session.scores())
            sizes = range(first["add"], begun["add"] + 1)
            adapters = {number % 2 for number in range(first["install"], begun["install"] + 1)}
            near = np.argwhere(np.abs(expected - found).max(axis=-1) < 1e-3).tolist()
            assert any(which in adapters and size in sizes for which, size in near), (near, adapters, sizes)
            assert len(near) == 1, near
            if last:
                return

    def watched(target: Any, *args: Any) -> threading.Thread:
        def run() -> None:
            try:
                target(*args)
            except BaseException as error:  # noqa: BLE001 - told to the test below
                problems.append(error)
                done.update({"add": len(events), "install": swaps})

        return threading.Thread(target=run)

    threads = [watched(rank) for _ in range(50)]
    threads += [watched(act, "add", len(events)), watched(act, "install", swaps)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert begun == done == {"add": len(events), "install": swaps}
