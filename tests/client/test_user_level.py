"""A device under user-level protection: what it accepts, what it is charged, what its reply can give away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from client import trainer
from client.limits import Limits
from client.request import read_step
from client.samples import training_windows
from shared.adapter import AdapterState
from shared.noise import Layer, Noise
from shared.privacy.accounting import Release
from shared.protocol import BELOW_CLIP, decode_reply
from tests.client.small_device import (
    ANYTHING,
    BOTH,
    EVENT,
    LENGTH,
    OPEN,
    TRAINING,
    USER,
    Home,
    global_state,
    question,
    rows,
    tiny_runtime,
)

PHASES = ("popularity", "train", "validate")
SAMPLED = {**USER, "user_rate": 0.1, "user_steps": 30}
LOCAL = Noise("user", "local", "device", 1, user=Layer(2.0, 2.0), bound=2.0).to_dict()
pytestmark = pytest.mark.usefixtures("own_cache")


def limits(mode: str, trust: str = "aggregate", **changes: Any) -> Limits:
    return Limits(mode, trust, **{"epsilon": 8.0, "delta": 1e-5, **changes})


def code(reply: RecordDict) -> str | None:
    found = reply["config"].get("refusal")
    return None if found is None else str(found)


def ask(home: Home, phase: str = "train", **changes: Any) -> AdapterState:
    manifest, content = question(phase, **changes)
    return decode_reply(home.device.answer(content), manifest)


# --- what it accepts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("least", "accepted"),
    [
        ("none", {"none", "event", "user", "both"}),
        ("event", {"event", "both"}),
        ("user", {"user", "both"}),
        ("both", {"both"}),
    ],
)
def test_a_device_accepts_rounds_that_protect_all_its_units(least: str, accepted: set[str]) -> None:
    plans = {"none": OPEN, "event": EVENT, "user": USER, "both": BOTH}
    for mode, noise in plans.items():
        for phase in PHASES:
            home = Home(limits=limits(least, epsilon=99.0))
            found = code(home.device.answer(question(phase, noise=noise)[1]))
            assert found == (None if mode in accepted else "trust"), (mode, phase)
            if mode not in accepted:
                assert home.charges == []


def test_a_device_that_trusts_nobody_with_its_noise_adds_all_of_it() -> None:
    strict = limits("user", "local")
    assert code(Home(limits=strict).device.answer(question("train", noise=USER)[1])) == "trust"
    home = Home(limits=strict, events=[])
    reply = ask(home, noise=LOCAL)
    assert reply.norm() == pytest.approx(4.0 * np.sqrt(reply.size), rel=0.1)  # z C in every entry


@pytest.mark.parametrize("noise", [OPEN, EVENT, USER, BOTH])
def test_a_device_that_wants_to_be_hidden_answers_nothing_in_the_open(noise: dict[str, Any]) -> None:
    home = Home(limits=limits("none", secure=True))
    assert [code(home.device.answer(question(phase, noise=noise)[1])) for phase in PHASES] == ["trust"] * 3
    assert home.charges == []


@pytest.mark.parametrize("noise", [SAMPLED, {**SAMPLED, "user_rate": 1.0}], ids=["sampled", "charged once"])
def test_a_real_device_pays_for_every_round(noise: dict[str, Any]) -> None:
    """It cannot see how cohorts are drawn, and a plan that is charged once would make all further rounds free."""
    home = Home(limits=limits("user", epsilon=99.0), seed=None)
    found = [code(home.device.answer(question("train", noise=noise, round=number)[1])) for number in (1, 2)]
    assert found == ["trust", "trust"]
    assert home.charges == []


@pytest.mark.parametrize(
    ("gamma", "clip", "refusal"), [(1e6, 1e-6, "trust"), (1e6, 1.0, "trust"), (1.0, 1e-6, "trust"), (1.0, 1.0, None)]
)
def test_an_adapter_whose_rounding_outgrows_a_windows_clip_is_refused_and_costs_nothing(
    gamma: float, clip: float, refusal: str | None
) -> None:
    home = Home(limits=limits("both", epsilon=99.0))
    state = global_state(tiny_runtime(), gamma_weight=np.array([gamma], dtype=np.float32))
    noise = {**BOTH, "event": {"multiplier": 2.0, "clip": clip}}
    assert code(home.device.answer(question("train", state=state, noise=noise)[1])) == refusal
    assert bool(home.charges) == (refusal is None)


# --- what it is charged ------------------------------------------------------------------------------------


def test_both_units_are_charged_together_for_the_one_noise() -> None:
    home = Home(limits=limits("both", epsilon=20.0))
    for phase in PHASES:
        ask(home, phase, noise=BOTH)
    assert home.ledger.releases(0) == [
        release for phase in PHASES for release in (Release(phase, 4.0), Release(phase, 2.0, unit="user"))
    ]


@pytest.mark.parametrize(
    ("budgets", "rounds"),
    [
        ({"epsilon": 99.0, "user_epsilon": 4.2}, 3),  # z = 2 for a person: 3.7, then 4.4
        ({"epsilon": 1.5, "user_epsilon": 99.0}, 2),  # z = 4 for a window: 1.4, then 1.7
    ],
    ids=["the person's", "the window's"],
)
def test_either_budget_ends_the_training_of_both_and_ranking_goes_on(budgets: dict[str, float], rounds: int) -> None:
    home = Home(limits=limits("both", **budgets), seed=None)
    found = [code(home.device.answer(question("train", noise=BOTH)[1])) for _ in range(rounds + 2)]
    assert found == [*[None] * rounds, "budget", "budget"]
    assert len(home.ledger.releases(0)) == 2 * rounds
    for unit, limit in {"event": budgets["epsilon"], "user": budgets["user_epsilon"]}.items():
        assert home.ledger.spent(0, unit=unit, delta=1e-5) <= limit
    assert len(home.device.recommend(tiny_runtime(), k=3)) == 3


def test_rounds_of_a_sampled_run_are_charged_once_and_other_runs_again() -> None:
    home = Home(limits=limits("user", epsilon=99.0))
    whole = Release("train", 2.0, 0.1, 30, "user")
    for number in (1, 2, 3):
        ask(home, noise=SAMPLED, round=number)
    assert home.ledger.releases(0) == [whole]
    ask(home, "validate", noise=SAMPLED)
    assert home.ledger.releases(0) == [whole, Release("validate", 2.0, unit="user")]
    ask(home, noise=SAMPLED, run="another")
    assert home.ledger.releases(0)[2:] == [whole]


def test_windows_are_charged_every_round_also_where_people_are_not() -> None:
    home = Home(limits=limits("both", epsilon=99.0))
    for number in (1, 2):
        ask(home, noise={**BOTH, "user_rate": 0.1, "user_steps": 30}, round=number)
    assert [(r.unit, r.steps) for r in home.ledger.releases(0)] == [("user", 30), ("event", 1), ("event", 1)]


def test_a_sampled_run_that_is_repeated_with_another_plan_is_not_answered() -> None:
    home = Home(limits=limits("user", epsilon=99.0))
    ask(home, noise=SAMPLED)
    cheaper = {**SAMPLED, "user_steps": 1}
    assert code(home.device.answer(question("train", noise=cheaper, round=4)[1])) == "failed"
    assert len(home.charges) == 1


# --- what the reply can give away --------------------------------------------------------------------------


def plain_update(**training: Any) -> AdapterState:
    return ask(Home(limits=ANYTHING), noise=OPEN, training={**TRAINING, **training})


@pytest.mark.parametrize("bound", [0.01, 1.0, 1e6])
def test_a_whole_update_is_the_unprotected_one_clipped(bound: float) -> None:
    noise = {**USER, "user": {"multiplier": 2.0, "clip": bound}, "bound": bound}
    for steps in (1, 2):
        training = {**TRAINING, "local_steps": steps}
        found = ask(Home(limits=limits("user")), noise=noise, training=training)
        plain = plain_update(local_steps=steps)
        assert found.norm() <= bound * (1 + 1e-6)
        np.testing.assert_allclose(found.pack(), plain.clipped(bound).pack(), rtol=1e-6, atol=1e-7 * bound)


@pytest.mark.parametrize("trust", ["aggregate", "local"])
@pytest.mark.parametrize(("window", "whole"), [(0.5, 0.2), (0.5, 1e6), (1e6, 0.3), (1e6, 1e6)])
def test_zero_divergence_with_noise_off_both_is_none_plus_the_two_clips(
    trust: str, window: float, whole: float
) -> None:
    """Each window is clipped, then their sum; with clips that never bind nothing is left of the protection."""
    by = "server" if trust == "aggregate" else "device"
    layers = {"event": Layer(1e-6 / window, window), "user": Layer(1e-6 / whole, whole)}  # noise of 1e-6
    noise = Noise("both", trust, by, 1, **layers, bound=whole)
    home = Home(limits=limits("both", trust, epsilon=1e30))
    home.ledger.charge = lambda *_, **__: True  # type: ignore[method-assign]  # such noise has no price
    found = ask(home, noise=noise.to_dict())
    runtime = tiny_runtime()
    manifest, _ = question("train")
    step = read_step(manifest, Noise("user", "aggregate", "server", 1, user=Layer(1.0, 1.0), bound=1.0))
    clipped = trainer.Step(1, 1.0, 1.0, noise_multiplier=0.0, clip_norm=window, names=step.names)
    windows = training_windows(home.device.history(), length=LENGTH)
    expected = trainer.train_locally(runtime.scorer, windows, runtime.table, step=clipped, seed=0).clipped(whole)
    np.testing.assert_allclose(found.pack(), expected.pack(), rtol=1e-4, atol=1e-5)
    if (window, whole) == (1e6, 1e6):
        np.testing.assert_allclose(found.pack(), plain_update().pack(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("noise", [USER, BOTH, LOCAL], ids=["user", "both", "local"])
def test_an_update_that_is_not_finite_is_sent_as_nothing(
    bad: float, noise: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the reply of a person whose training overflows would tell so, whatever the noise."""
    update = AdapterState({name: np.full(shape, bad) for name, shape in tiny_runtime().start.shapes.items()})
    monkeypatch.setattr(trainer, "train_locally", lambda *_, **__: update)
    monkeypatch.setattr(trainer, "gaussian", lambda count, *, std, seed: np.zeros(count))
    accepts = limits(noise["mode"], noise["trust"], epsilon=99.0)
    assert ask(Home(limits=accepts), noise=noise).norm() == 0.0


@pytest.mark.parametrize(("clip", "sign"), [(1e6, 1.0), (1e-3, -1.0)])
def test_the_quantile_is_one_bit_of_fixed_size_beside_the_clipped_update(clip: float, sign: float) -> None:
    weight = clip / 2
    bound = float(np.hypot(clip, weight / 2))
    noise = {**USER, "user": {"multiplier": 2.0, "clip": bound}, "bound": bound}
    reply = {**tiny_runtime().start.shapes, BELOW_CLIP: (1,)}
    training = {**TRAINING, "update_clip": clip, "quantile_weight": weight}
    found = ask(Home(limits=limits("user")), noise=noise, reply=reply, training=training)
    assert found.arrays[BELOW_CLIP].tolist() == pytest.approx([sign * weight / 2], rel=1e-6)
    assert found.norm() <= bound * (1 + 1e-6)
    rest = found.select([name for name in found if name != BELOW_CLIP])
    np.testing.assert_allclose(rest.pack(), plain_update().clipped(clip).pack(), rtol=1e-5, atol=1e-7)


def test_a_server_that_asks_for_a_heavier_bit_than_it_noises_gets_a_clipped_one() -> None:
    reply = {**tiny_runtime().start.shapes, BELOW_CLIP: (1,)}
    training = {**TRAINING, "update_clip": 1e6, "quantile_weight": 1e9}
    found = ask(Home(limits=limits("user")), noise=USER, reply=reply, training=training)
    assert found.norm() <= 2.0 * (1 + 1e-6)


def test_a_count_is_clipped_whole_and_a_device_without_events_counts_nothing() -> None:
    home = Home(events=rows([1] * 40), limits=limits("user"))
    assert ask(home, "popularity", noise=USER).norm() == pytest.approx(2.0)
    assert ask(Home(events=[], limits=limits("user")), "popularity", noise=USER).norm() == 0.0
    few = ask(Home(events=rows([1]), limits=limits("user")), "popularity", noise=USER)
    assert few.norm() == 1.0
