"""A device and the one-round prior: its moments, what they can give away, and the ranking that comes of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client import device as device_module
from client import trainer
from client.limits import Limits
from client.samples import training_windows
from client.store import Role
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, load_adapter
from shared.model import Stage
from shared.noise import Layer, Noise
from shared.prior import MOMENTS, window_moments
from shared.privacy.accounting import Release
from shared.protocol import decode_reply, encode_request
from tests.client.small_device import (
    ANYTHING,
    CAREFUL,
    EVENT,
    ITEMS,
    LENGTH,
    OPEN,
    USER,
    WITH_PRIOR,
    Home,
    global_state,
    question,
    rows,
    tiny_runtime,
)

FORM = {"prior_features": (136,), "prior_targets": (16, 8)}
pytestmark = pytest.mark.usefixtures("own_cache")


def ask(home: Home, phase: str = "prior", **changes: Any) -> AdapterState:
    manifest, content = question(phase, prior=WITH_PRIOR, **changes)
    return decode_reply(home.device.answer(content), manifest)


def code(reply: RecordDict) -> str | None:
    found = reply["config"].get("refusal")
    return None if found is None else str(found)


def event(clip: float) -> dict[str, Any]:
    return {**EVENT, "event": {"multiplier": 2.0, "clip": clip}}


def user(bound: float) -> dict[str, Any]:
    """Noise that the server adds, so that the reply itself can be looked at."""
    return {**USER, "user": {"multiplier": 2.0, "clip": bound}, "bound": bound}


def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "gaussian", lambda count, *, std, seed: np.zeros(count))


def matrix(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.3, (16, 8)).astype(np.float32)


# --- the moments -------------------------------------------------------------------------------------------


def test_moments_are_those_of_the_training_windows_alone() -> None:
    """The held-out event and what follows it are in no window, neither as an event nor as a target."""
    events = rows([1, 2, 3, 4, 5, 6, 9, 7], held_out=6)
    events[7] = (*events[7][:5], int(Role.HISTORY), None)
    found = ask(Home(events=events, limits=ANYTHING), noise=OPEN)
    runtime = tiny_runtime(prior=WITH_PRIOR)
    windows = training_windows(Home(events=rows([1, 2, 3, 4, 5, 6])).device.history(), length=LENGTH)
    assert runtime.scorer.layout is not None
    assert found == AdapterState(window_moments(windows, runtime.table, runtime.scorer.layout))
    assert found.shapes == FORM
    assert found.norm() > 0.1


@pytest.mark.parametrize("limits", [CAREFUL, ANYTHING])
@pytest.mark.parametrize("events", [[], rows([3])], ids=["no events", "one event"])
def test_a_device_with_nothing_to_say_answers_with_noise_and_pays_like_any_other(limits: Limits, events: Any) -> None:
    home = Home(events=events, limits=limits)
    found = ask(home)
    assert found.size == 264
    assert found.pack().std() == pytest.approx(2.0, rel=0.2)  # z C / sqrt(quorum)
    assert home.ledger.releases(0) == [Release("prior", 2.0)]
    assert ask(Home(events=events, limits=ANYTHING), noise=OPEN).norm() == 0


@pytest.mark.parametrize("change", [{"clip": 0.05}, {"clip": 1e9}])
def test_windows_are_clipped_one_by_one_and_their_sum_is_not(
    change: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(monkeypatch)
    home = Home(events=rows([*range(12), 1, 2, 3, 4]))  # four windows
    runtime = tiny_runtime(prior=WITH_PRIOR)
    windows = training_windows(home.device.history(), length=LENGTH)
    assert runtime.scorer.layout is not None
    expected = AdapterState(window_moments(windows, runtime.table, runtime.scorer.layout, clip=change["clip"]))
    found = ask(home, noise=event(change["clip"]))
    assert found == expected
    assert found.norm() > 2 * min(change["clip"], 0.1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    full=st.lists(st.integers(0, ITEMS - 1), min_size=LENGTH, max_size=3 * LENGTH),
    window=st.lists(st.integers(0, ITEMS - 1), min_size=2, max_size=LENGTH),
    clip=st.floats(1e-3, 2.0),
)
def test_one_more_window_moves_a_devices_reply_by_at_most_the_clip(
    full: list[int], window: list[int], clip: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(monkeypatch)
    whole = full[: len(full) // LENGTH * LENGTH]
    before, after = (ask(Home(events=rows(items)), noise=event(clip)).pack() for items in (whole, [*whole, *window]))
    assert np.linalg.norm(after.astype(float) - before) <= clip * (1 + 1e-4)


@pytest.mark.parametrize("bound", [1e-2, 0.5, 1e6])
def test_a_whole_device_moves_the_sum_by_at_most_the_bound(bound: float) -> None:
    """Against no device, which adds nothing. The reply is the unprotected one scaled down as a whole."""
    limits = Limits("user", "aggregate", epsilon=8.0, delta=1e-5)
    home = Home(events=rows([*range(12), 1, 2, 3, 4]), limits=limits)
    found = ask(home, noise=user(bound))
    plain = ask(Home(events=home.events, limits=ANYTHING), noise=OPEN)
    assert found.norm() <= bound * (1 + 1e-6)
    assert found.norm() == pytest.approx(min(bound, plain.norm()), rel=1e-5)
    np.testing.assert_allclose(found.pack(), plain.pack() * min(1, bound / plain.norm()), rtol=1e-5, atol=1e-7 * bound)
    assert home.ledger.releases(0) == [Release("prior", 2.0, unit="user")]


def test_with_both_units_each_window_and_then_their_sum_is_clipped() -> None:
    noise = Noise("both", "aggregate", "server", 4, event=Layer(2.0, 0.3), user=Layer(2.0, 0.5), bound=0.5).to_dict()
    home = Home(events=rows([*range(12), 1, 2, 3, 4]), limits=ANYTHING)
    found = ask(home, noise=noise)
    assert found.norm() == pytest.approx(0.5, rel=1e-5)
    assert ask(Home(events=rows([0, 1, 2, 3]), limits=ANYTHING), noise=noise).norm() == pytest.approx(0.3, rel=1e-4)


# --- what is refused, and what is paid ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"reply": {**FORM, "prior_features": (137,)}}, "bad-message"),
        ({"reply": {**FORM, "prior_targets": (8, 16)}}, "bad-message"),
        ({"reply": {"prior_features": (136,)}}, "bad-message"),
        ({"reply": {**FORM, "gamma.weight": (1,)}}, "bad-message"),
        ({"reply": {POPULARITY: (ITEMS,)}}, "bad-message"),
        ({"noise": OPEN}, "trust"),
        ({"noise": None}, "bad-message"),
        ({"noise": event(1e-20)}, "bad-message"),
        ({"catalogue": "c" * 64}, "catalogue"),
    ],
    ids=str,
)
def test_another_question_is_refused_before_anything_is_charged(changes: dict[str, Any], expected: str) -> None:
    home = Home()
    _, content = question("prior", **changes)
    assert code(home.device.answer(content)) == expected
    assert home.charges == []


def test_moments_of_a_model_without_a_prior_are_refused_before_anything_is_charged() -> None:
    home = Home()
    manifest, _ = question("popularity")
    assert manifest.settings["prior"]["half_lives"] == []
    for reply in (FORM, {}):
        content = encode_request(dataclasses.replace(manifest, phase="prior", reply=reply), AdapterState({}))
        assert code(home.device.answer(content)) == "bad-message"
    assert home.charges == []


@pytest.mark.parametrize("phase", ["train", "validate"])
@pytest.mark.parametrize(
    "bad", [np.zeros((8, 16)), np.zeros(128), np.full((16, 8), np.nan), np.full((16, 8), np.inf)], ids=str
)
def test_a_prior_that_does_not_fit_is_refused_before_anything_is_charged(phase: str, bad: np.ndarray) -> None:
    home = Home()
    state = global_state(tiny_runtime(prior=WITH_PRIOR), prior=bad.astype(np.float32))
    _, content = question(phase, prior=WITH_PRIOR, state=state)
    assert code(home.device.answer(content)) == "bad-message"
    assert home.charges == []


def test_the_ledger_is_charged_before_moments_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    home, seen = Home(), []

    def look(*_: object, **__: object) -> None:
        seen.append(home.charges)
        raise RuntimeError

    monkeypatch.setattr(device_module, "window_moments", look)
    _, content = question("prior")
    assert code(home.device.answer(content)) == "failed"
    assert seen == [["prior"]]


def test_a_real_device_draws_fresh_noise_and_a_virtual_one_repeats_itself() -> None:
    real, virtual = Home(seed=None), Home()
    assert ask(real) != ask(real)
    assert real.charges == ["prior", "prior"]
    assert ask(virtual) == ask(virtual)
    assert virtual.charges == ["prior"]


def test_a_spent_budget_gives_no_moments() -> None:
    home = Home(limits=Limits("event", "aggregate", epsilon=0.5, delta=1e-5))
    _, content = question("prior")
    assert code(home.device.answer(content)) == "budget"
    assert home.charges == []


def test_moments_that_are_not_finite_are_sent_as_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> dict[str, np.ndarray]:
        return {name: np.full(shape, np.nan, dtype=np.float32) for name, shape in FORM.items()}

    monkeypatch.setattr(device_module, "window_moments", broken)
    home = Home(limits=Limits("user", "aggregate", epsilon=8.0, delta=1e-5))
    assert ask(home, noise=USER).norm() == 0


# --- training and comparing with a prior ---------------------------------------------------------------------


def test_training_starts_from_the_prior_that_was_sent() -> None:
    runtime = tiny_runtime(prior=WITH_PRIOR)
    updates = []
    for state in (
        global_state(runtime),
        global_state(runtime, prior=matrix()),
        global_state(runtime, prior=matrix(1)),
        global_state(runtime),  # a prior does not stay behind
    ):
        updates.append(ask(Home(limits=ANYTHING), "train", state=state, noise=OPEN))
    assert updates[0] == updates[3]
    assert all((updates[one] - updates[other]).norm() > 0.1 for one, other in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(("right", "expected"), [(True, 0.5), (False, 0.0)])
def test_the_comparison_says_for_each_candidate_how_much_better_than_the_start_it_is(
    right: bool, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prior knows one thing, what follows item 8; the start has no weights and ranks nothing."""
    quiet(monkeypatch)
    settings = {"gamma": 0.0, "beta": 0.0}
    prior = {**WITH_PRIOR, "widths": [24, 1], "output": 24}
    runtime = tiny_runtime(prior=prior, **settings)
    codes = runtime.table.codes.numpy()[:, :24]
    unseen = np.array([0, *range(9, ITEMS)])
    follows = int(unseen[np.linalg.norm(codes[unseen], axis=1).argmax()])  # no other item is more like it than itself
    held_out = follows if right else int(unseen[(codes[unseen] @ codes[follows]).argmin()])
    popularity = np.zeros(ITEMS, dtype=np.float32)
    popularity[follows] = 1.0  # first of those whose text is the same
    solved = np.zeros((25, 24), dtype=np.float32)
    solved[:24] = np.outer(codes[8], codes[follows])
    output = np.random.default_rng(0).normal(0, 1e3, (16, 32)).astype(np.float32)
    home = Home(events=rows([*range(1, 9), held_out], held_out=8))
    found = []
    for changed in ({}, {"output.0.weight": output}):
        state = global_state(runtime, prior=solved, popularity=popularity, **changed)
        manifest, content = question("validate", prior=prior, model=settings, state=state)
        found.append(decode_reply(home.device.answer(content), manifest).pack().tolist())
    assert found[0] == [expected, expected]  # a fresh adapter is the prior
    assert found[1][0] == expected
    assert found[1][1] != expected


def test_the_first_entry_is_the_priors_and_the_second_the_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks 1, 2 and 3 of the held-out item: NDCG 1, 0.63 and 0.5."""
    quiet(monkeypatch)
    place = {"start": 2, "prior": 3, "adapter": 1}

    def ranked(runtime: Any, histories: Any, *, stage: Stage) -> np.ndarray:
        scores = np.arange(ITEMS, dtype=np.float32)
        scores[9] = ITEMS - place[stage] + 0.5
        return scores[None]

    monkeypatch.setattr(device_module, "score_catalogue", ranked)
    state = global_state(tiny_runtime(prior=WITH_PRIOR), prior=matrix())
    home = Home(events=rows([1, 2, 3, 9], held_out=3))
    gains = [0.5 - 1 / np.log2(3), 1 - 1 / np.log2(3)]
    assert ask(home, "validate", state=state).pack().tolist() == pytest.approx([gain / 2 for gain in gains], abs=1e-6)


@pytest.mark.parametrize("clip", [1e-3, 2**0.5, 10.0])
def test_two_comparisons_together_lie_within_the_clip_of_their_noise(
    clip: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(monkeypatch)
    state = global_state(tiny_runtime(prior=WITH_PRIOR), prior=matrix())
    answers = []
    for gain in (9.0, -9.0):
        ndcgs = iter([0.0, gain, gain])
        monkeypatch.setattr(device_module, "ndcg", lambda ranks, k, ndcgs=ndcgs: np.array([next(ndcgs)]))
        answers.append(ask(Home(), "validate", state=state, noise=event(clip)))
    assert (answers[0] - answers[1]).norm() == pytest.approx(min(clip, 2**0.5), rel=1e-5)
    bound = 2**0.5 / 2
    noise = user(bound)
    ndcgs = iter([0.0, 9.0, -9.0])
    monkeypatch.setattr(device_module, "ndcg", lambda ranks, k: np.array([next(ndcgs)]))
    found = ask(Home(limits=ANYTHING), "validate", state=state, noise=noise)
    assert found.pack().tolist() == [0.5, -0.5]
    assert found.norm() == pytest.approx(bound)


# --- delivery ---------------------------------------------------------------------------------------------


def test_a_delivered_prior_is_kept_and_ranks_the_same_after_a_restart(tmp_path: Path) -> None:
    home = Home(adapter_folder=tmp_path / "adapter")
    runtime = tiny_runtime(prior=WITH_PRIOR)
    state = global_state(runtime, prior=matrix())
    runtime.install(state)
    expected = [(item.item_id, item.score) for item in home.device.recommend(runtime, k=5)]
    without = global_state(runtime)
    runtime.install(without)
    assert [(item.item_id, item.score) for item in home.device.recommend(runtime, k=5)] != expected
    assert ask(home, "install", state=state, noise=OPEN, outcome={}, privacy={}).size == 0
    adapter, popularity, _ = load_adapter(tmp_path / "adapter")
    assert np.array_equal(adapter.arrays["prior"], matrix())
    runtime.install(AdapterState({**adapter.arrays, POPULARITY: popularity}))
    assert [(item.item_id, item.score) for item in home.device.recommend(runtime, k=5)] == expected


def test_the_form_of_moments_is_that_of_the_public_settings() -> None:
    layout = tiny_runtime(prior=WITH_PRIOR).scorer.layout
    assert layout is not None
    assert layout.shapes == FORM
    assert tuple(FORM) == MOMENTS
