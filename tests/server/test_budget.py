"""The numbers the guarantee rests on, against the device's own code and independent accountants."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest

from client import device as device_module
from client.limits import Limits
from server.budget import (
    DIFFERENCE_BOUND,
    budget_shares,
    compared,
    is_amplified,
    phase_noise,
    plan_budget,
    quantile_weight,
    reply_sizes,
    run_facts,
    sensitivities,
    unit_budgets,
    whole_reply_bound,
)
from shared.adapter import AdapterState
from shared.config import Config, merge
from shared.errors import PrivacyError
from shared.noise import MODES
from shared.privacy.accounting import Release, epsilon_of
from shared.privacy.plan import PHASES
from shared.protocol import decode_reply
from tests.client.small_device import LENGTH, WITH_PRIOR, Home, global_state, question, rows, tiny_runtime
from tests.client.small_device import tiny_config as device_config

DEVICES = 40
PRIVATE_MODES = ("event", "user", "both")
pytestmark = pytest.mark.usefixtures("own_cache")


#: Settings of a run that asks for a prior; privacy allows one group.
PRIOR = {"half_lives": [2.0], "widths": [8], "folds": 1}


def config(**sections: Any) -> Config:
    """A run without a prior unless `sections` ask for one."""
    base = {"privacy": {"mode": "both"}, "federation": {"rounds": 12, "cohort": 8}, "prior": {"half_lives": []}}
    return merge(merge(Config(), base), sections)


# --- sensitivities, by brute force against a real device ---------------------------------------------------

#: Histories that differ by one whole window (the last), or by a person: (with, without).
EVENTS = [*range(8), 15, 3, 20, 11]
NEIGHBOURS = {"event": (EVENTS, EVENTS[:-LENGTH]), "user": (EVENTS, [])}
TIGHT = {"training": {"clip_norm": 0.3, "local_learning_rate": 0.5}, "privacy": {"mode": "both", "user_clip": 0.2}}


def reply_of(settings: Config, phase: str, events: list[int]) -> AdapterState:
    """A real device's reply before the server's noise."""
    noise = phase_noise(settings, plan_budget(settings, DEVICES), phase=phase, asked=8)
    assert noise.device_std == 0.0
    training = {**settings.to_dict()["training"], "update_clip": 1.0, "quantile_weight": 0.0}
    state = None
    if phase == "validate" and settings.prior.half_lives:
        runtime = tiny_runtime(prior=WITH_PRIOR)
        state = global_state(runtime, prior=np.zeros((16, 8), dtype=np.float32))
    prior = WITH_PRIOR if settings.prior.half_lives else None
    manifest, content = question(phase, prior=prior, state=state, noise=noise.to_dict(), training=training)
    home = Home(events=rows([*events, 9], held_out=len(events)) if events else [])
    home.device._limits = Limits("both", "aggregate", epsilon=99.0, delta=1e-5)
    return decode_reply(home.device.answer(content), manifest)


@pytest.mark.parametrize(("phase", "unit"), list(product(("popularity", "prior", "train"), ("event", "user"))))
@pytest.mark.parametrize("user_clip", [0.2, 1e3])
def test_no_unit_moves_a_devices_reply_by_more_than_its_sensitivity(phase: str, unit: str, user_clip: float) -> None:
    prior = {**WITH_PRIOR, "clip": user_clip} if phase == "prior" else None
    settings = merge(merge(device_config(prior=prior), TIGHT), {"privacy": {"user_clip": user_clip}})
    replies = [reply_of(settings, phase, events) for events in NEIGHBOURS[unit]]
    moved = (replies[0] - replies[1]).norm()
    stated = sensitivities(settings, phase)[unit]
    assert moved <= stated * (1 + 1e-4) + 1e-6
    alone_binds = {
        "popularity": True,
        "prior": (unit, user_clip) == ("user", 0.2),
        "train": (unit == "event" and user_clip == 1e3) or (unit, user_clip) == ("user", 0.2),
    }
    if alone_binds[phase] and not (phase == "popularity" and unit == "event"):
        assert moved >= 0.9 * stated  # the bound is reached, not padded


def test_the_sensitivities_of_the_table_by_hand() -> None:
    settings = config(model={"history": 9}, training={"local_learning_rate": 0.5, "clip_norm": 3.0})
    assert sensitivities(settings, "popularity") == {"event": 3.0, "user": 3.0}
    assert sensitivities(settings, "train") == {"event": 1.5, "user": 1.0}
    assert sensitivities(settings, "train", update_clip=0.25) == {"event": 1.5, "user": 0.25}
    assert sensitivities(settings, "validate") == {"event": 1.0, "user": 0.5}
    with_prior = merge(settings, {"prior": {**PRIOR, "clip": 0.3}})
    assert sensitivities(with_prior, "prior") == {"event": 0.3, "user": 0.3}
    assert sensitivities(with_prior, "validate") == pytest.approx({"event": 2**0.5, "user": 2**0.5 / 2})
    assert device_module.DIFFERENCE_BOUND == DIFFERENCE_BOUND


@pytest.mark.parametrize("unit", ["event", "user"])
@pytest.mark.parametrize("prior", [None, WITH_PRIOR], ids=["one candidate", "two candidates"])
def test_the_comparison_goes_from_one_end_of_its_range_to_the_other(
    unit: str, prior: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = merge(device_config(prior=prior), TIGHT)
    answers = []
    for gain in (5.0, -5.0):
        ndcgs = iter([0.0, gain, gain])
        monkeypatch.setattr(device_module, "ndcg", lambda ranks, k, ndcgs=ndcgs: np.array([next(ndcgs)]))
        answers.append(reply_of(settings, "validate", EVENTS))
    assert answers[0].size == len(compared(settings))
    gone = reply_of(settings, "validate", [])
    moved = [answers[0] - answers[1]] if unit == "event" else [answer - gone for answer in answers]
    assert max(change.norm() for change in moved) == pytest.approx(sensitivities(settings, "validate")[unit], rel=1e-6)


# --- the plan ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [{}, PRIOR], ids=["no prior", "prior"])
@pytest.mark.parametrize("rounds", [0, 12])
@pytest.mark.parametrize(
    "changes", [{}, {"popularity_share": 0.2, "validation_share": 0.05, "prior_share": 0.6}], ids=["usual", "other"]
)
def test_shares_of_the_budget_add_up_to_one(rounds: int, prior: dict[str, Any], changes: dict[str, float]) -> None:
    settings = config(privacy=changes, federation={"rounds": rounds}, prior=prior)
    shares = budget_shares(settings)
    assert set(shares) == set(PHASES)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert {phase for phase, share in shares.items() if share == 0} == (
        ({"train"} if not rounds else set()) | ({"prior"} if not prior else set())
    )
    wanted = {"popularity": "popularity_share", "validate": "validation_share", "prior": "prior_share"}
    asked = {phase: getattr(settings.privacy, name) for phase, name in wanted.items() if shares[phase]}
    scale = 1.0 if rounds else sum(asked.values())
    for phase, share in asked.items():
        assert shares[phase] == pytest.approx(share / scale)


@pytest.mark.parametrize("mode", PRIVATE_MODES)
@pytest.mark.parametrize("rounds", [0, 12])
def test_a_prior_is_paid_out_of_the_same_budget(mode: str, rounds: int) -> None:
    settings = config(privacy={"mode": mode}, federation={"rounds": rounds}, prior=PRIOR)
    plan, without = (plan_budget(merge(settings, {"prior": change}), DEVICES) for change in (PRIOR, NO_PRIOR))
    assert plan is not None
    assert without is not None
    for unit in MODES[mode]:
        layer, other = getattr(plan, unit), getattr(without, unit)
        charged = [Release(phase, getattr(layer, phase)) for phase in ("popularity", "prior", "validate")]
        if rounds:
            charged.append(Release("train", layer.train, steps=3))
            assert layer.train > other.train > 0
        assert epsilon_of(charged, delta=1e-5) == pytest.approx(8.0, rel=1e-6)
        parts = [release.steps / release.noise_multiplier**2 for release in charged]
        shares = [budget_shares(settings)[release.phase] for release in charged]
        assert [part / sum(parts) for part in parts] == pytest.approx(shares)
        assert other.prior == 0.0
        assert (layer.train == 0.0) == (rounds == 0)


NO_PRIOR: dict[str, Any] = {"half_lives": [], "widths": []}


def test_replies_are_as_large_as_the_plan_takes_them_to_be() -> None:
    """For each phase what a device is asked for, which integer noise is planned with."""
    runtime = tiny_runtime(prior=WITH_PRIOR)
    settings = device_config(prior=WITH_PRIOR)
    sizes = reply_sizes(settings, runtime.start, items=24, layout=runtime.scorer.layout)
    asked = {
        phase: AdapterState.length(question(phase, prior=WITH_PRIOR)[0].reply) for phase in ("popularity", "prior")
    }
    assert {phase: sizes[phase] for phase in asked} == asked == {"popularity": 24, "prior": 136 + 128}
    assert sizes["validate"] == 2
    assert reply_sizes(device_config(), runtime.start, items=24) == {**sizes, "prior": 0, "validate": 1}


@pytest.mark.parametrize("mode", PRIVATE_MODES)
@pytest.mark.parametrize("trust", ["aggregate", "local"])
def test_a_plan_spends_each_units_budget_and_no_more(mode: str, trust: str) -> None:
    settings = config(privacy={"mode": mode, "trust": trust, "epsilon": 3.0, "user_epsilon": 5.0})
    plan = plan_budget(settings, DEVICES)
    assert plan is not None
    assert plan.participations == 3  # 12 rounds, five to a pass
    budgets = unit_budgets(settings)
    assert budgets == {u: 5.0 if (mode, u) == ("both", "user") else 3.0 for u in MODES[mode]}
    for unit in ("event", "user"):
        layer = getattr(plan, unit)
        assert (layer is not None) == (unit in budgets)
        if layer:
            charged = [Release("popularity", layer.popularity), Release("train", layer.train, steps=3)]
            charged.append(Release("validate", layer.validate))
            assert epsilon_of(charged, delta=1e-5) == pytest.approx(budgets[unit], rel=1e-6)
            assert layer.epsilon <= budgets[unit]


def test_without_privacy_there_is_no_plan_and_no_noise() -> None:
    settings = config(privacy={"mode": "none"})
    assert plan_budget(settings, DEVICES) is None
    noise = phase_noise(settings, None, phase="train", asked=8)
    assert (noise.mode, noise.std, noise.bound) == ("none", 0.0, math.inf)


def test_an_independent_accountant_agrees_with_the_whole_plan() -> None:
    from dp_accounting import GaussianDpEvent
    from dp_accounting.pld import PLDAccountant

    plan = plan_budget(config(privacy={"mode": "user"}), DEVICES)
    assert plan is not None
    assert plan.user is not None
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(GaussianDpEvent(plan.user.popularity))
    accountant.compose(GaussianDpEvent(plan.user.train), plan.participations)
    accountant.compose(GaussianDpEvent(plan.user.validate))
    assert accountant.get_epsilon(1e-5) == pytest.approx(8.0, rel=2e-3)


@pytest.mark.parametrize("local_steps", [1, 4])
def test_windows_are_planned_for_every_local_step_and_people_for_every_round(local_steps: int) -> None:
    event = plan_budget(
        config(privacy={"mode": "event", "trust": "local"}, training={"local_steps": local_steps}), DEVICES
    )
    user = plan_budget(config(privacy={"mode": "user"}, training={"local_steps": local_steps}), DEVICES)
    once = plan_budget(config(privacy={"mode": "user"}), DEVICES)
    assert event is not None
    assert once is not None
    assert user == once
    assert event.event is not None
    assert once.user is not None
    assert event.event.train == pytest.approx(once.user.train * math.sqrt(local_steps), rel=1e-6)


@pytest.mark.parametrize(
    ("simulation", "sampling", "trust", "mode"),
    list(product((True, False), ("poisson", "shuffled", "cyclic"), ("aggregate", "local"), ("event", "user", "both"))),
)
def test_amplification_is_claimed_only_where_cohorts_are_sampled_and_secret(
    simulation: bool, sampling: str, trust: str, mode: str
) -> None:
    settings = config(privacy={"mode": mode, "trust": trust}, federation={"sampling": sampling})
    allowed = simulation and sampling == "poisson" and trust == "aggregate" and mode in ("user", "both")
    assert is_amplified(settings, simulation=simulation) == allowed


def test_amplified_people_are_priced_for_all_rounds_at_the_sampling_rate() -> None:
    settings = config(privacy={"mode": "user"}, federation={"sampling": "poisson"})
    plan = plan_budget(settings, DEVICES)
    deployed = plan_budget(settings, DEVICES, simulation=False)
    assert plan is not None
    assert deployed is not None
    assert (plan.user_rate, plan.user_steps) == (0.2, 12)
    assert (deployed.user_rate, deployed.user_steps) == (1.0, 0)
    assert plan.user is not None
    assert deployed.user is not None
    assert plan.user.train < deployed.user.train
    assert plan.user.epsilon <= 8.0
    noise = phase_noise(settings, plan, phase="train", asked=8)
    assert (noise.user_rate, noise.user_steps) == (0.2, 12)
    assert noise.releases("train", dimension=1) == [Release("train", plan.user.train, 0.2, 12, "user")]


@pytest.mark.parametrize(("bands", "fits"), [(5, True), (6, False)])
def test_no_more_bands_than_rounds_that_a_device_stays_away(bands: int, fits: bool) -> None:
    privacy = {"mode": "user", "noise_bands": bands}
    settings = config(privacy=privacy, federation={"sampling": "cyclic", "aggregation": "ffa"})
    if fits:
        plan_budget(settings, DEVICES)
    else:
        with pytest.raises(PrivacyError, match="found 6; a device comes back after 5 rounds"):
            plan_budget(settings, DEVICES)


# --- the noise of one exchange -----------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("mode", "trust", "secure", "by"),
    [
        ("event", "aggregate", False, "device"),
        ("event", "local", False, "device"),
        ("user", "aggregate", False, "server"),
        ("both", "aggregate", False, "server"),
        ("user", "local", False, "device"),
        ("both", "local", False, "device"),
        ("user", "aggregate", True, "device"),
        ("event", "aggregate", True, "device"),
    ],
)
def test_the_noise_of_an_exchange_is_sound_and_covers_every_unit(
    phase: str, mode: str, trust: str, secure: bool, by: str
) -> None:
    federation = {"secure_aggregation": secure}
    settings = config(privacy={"mode": mode, "trust": trust}, federation=federation, prior={**PRIOR, "clip": 0.7})
    sizes = {"popularity": 50, "prior": 70, "train": 60, "validate": 2}
    plan = plan_budget(settings, DEVICES, dimensions=sizes)
    noise = phase_noise(settings, plan, phase=phase, asked=8)
    assert noise.from_dict(noise.to_dict()) == noise
    assert (noise.by, noise.trust, noise.scale > 0) == (by, trust, secure)
    clips = sensitivities(settings, phase)
    for unit in MODES[mode]:
        layer, planned = getattr(noise, unit), getattr(plan, unit)
        assert (layer.multiplier, layer.clip) == (getattr(planned, phase), clips[unit])
        assert noise.std >= layer.multiplier * clips[unit]
    assert noise.bound == (clips["user"] if mode != "event" or secure else math.inf)
    for release in noise.releases(phase, dimension=sizes[phase]):  # never charged for less noise than was planned
        assert release.noise_multiplier >= getattr(getattr(plan, release.unit), phase) * (1 - 1e-12)


@pytest.mark.parametrize(("quorum", "asked", "least"), [(0.6, 8, 5), (0.8, 10, 8), (0.5, 1, 1), (1e-6, 100, 1)])
def test_the_quorum_is_rounded_up(quorum: float, asked: int, least: int) -> None:
    settings = config(federation={"quorum": quorum})
    assert phase_noise(settings, plan_budget(settings, DEVICES), phase="train", asked=asked).quorum == least


# --- the adaptive clip -------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.02, 0.5])
@pytest.mark.parametrize("clip", [0.1, 3.0])
def test_update_and_quantile_together_are_one_release_of_the_stated_sensitivity(share: float, clip: float) -> None:
    """By brute force over what one person may send: any update within the clip and either answer."""
    settings = config(privacy={"mode": "user", "clip_quantile": 0.5, "quantile_share": share})
    weight, bound = quantile_weight(settings, clip), whole_reply_bound(settings, clip)
    assert sensitivities(settings, "train", update_clip=clip)["user"] == bound
    norms = [math.hypot(length, answer) for length in (0.0, clip / 2, clip) for answer in (weight / 2, -weight / 2)]
    assert max(norms) == pytest.approx(bound)
    assert (weight / 2) ** 2 / bound**2 == pytest.approx(share)  # the quantile's part of sum 1 / z^2
    assert clip**2 / bound**2 == pytest.approx(1 - share)


def test_a_fixed_clip_costs_nothing_extra() -> None:
    settings = config(privacy={"mode": "user"})
    assert (whole_reply_bound(settings, 0.7), quantile_weight(settings, 0.7)) == (0.7, 0.0)


def test_a_run_is_described_by_what_its_statement_needs() -> None:
    settings = config(privacy={"user_epsilon": 2.0, "user_clip": 0.5}, model={"history": 32})
    plan = plan_budget(settings, DEVICES)
    assert plan is not None
    facts = run_facts(settings, plan, devices=DEVICES, seeded=False)
    assert facts == {
        "mode": "both",
        "units": ["event", "user"],
        "trust": "aggregate",
        "secure_aggregation": False,
        "delta": 1e-5,
        "budgets": {"event": 8.0, "user": 2.0},
        "clips": {"event": 1.0, "user": 0.5},
        "history": 32,
        "devices": DEVICES,
        "seeded": False,
        "participation_cap": 3,
        "amplified": False,
        "noise_bands": 1,
        "phases": ["popularity", "train", "validate"],
    }
    assert run_facts(settings, plan, devices=DEVICES, seeded=True) == {**facts, "seeded": True}
    with_prior = merge(settings, {"prior": PRIOR})
    found = run_facts(with_prior, plan, devices=DEVICES, seeded=False)["phases"]
    assert found == ["popularity", "prior", "train", "validate"]
    alone = merge(with_prior, {"federation": {"rounds": 0}})
    assert run_facts(alone, plan, devices=DEVICES, seeded=False)["phases"] == ["popularity", "prior", "validate"]
