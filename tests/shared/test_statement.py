"""The statement says what was spent, never a typed-in number, and never less than is true."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.config import Config, merge
from shared.privacy.accounting import NoisePlan, Release, epsilon_of, plan_noise
from shared.privacy.statement import NOT_COVERED, privacy_facts


def config(**privacy: Any) -> Config:
    return merge(Config(), {"privacy": {"mode": "event", **privacy}, "model": {"history": 32}})


def plan(settings: Config, *, participations: int = 4) -> NoisePlan:
    return plan_noise(
        settings.privacy,
        participations=participations,
        local_steps=settings.training.local_steps,
        sample_rate=settings.training.window_sample_rate,
    )


def test_without_privacy_it_promises_nothing() -> None:
    facts = privacy_facts(Config(), devices=10, noise=None)
    assert set(facts) == {"mode", "statement"}
    assert facts["mode"] == "none"
    assert facts["statement"].startswith("No privacy:")


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_epsilon_is_what_the_planned_releases_add_up_to(epsilon: float) -> None:
    settings = config(epsilon=epsilon)
    facts = privacy_facts(settings, devices=10, noise=plan(settings))
    z = facts["noise_multipliers"]
    releases = [Release("popularity", z["popularity"]), Release("train", z["train"], 1.0, 4)]
    releases.append(Release("validate", z["validate"]))
    assert facts["epsilon"] == pytest.approx(epsilon_of(releases, delta=facts["delta"]))
    assert facts["epsilon"] <= epsilon
    assert f"({facts['epsilon']:.2f}, 1e-05)-differentially private" in facts["statement"]


def test_a_plan_that_spends_less_than_the_budget_is_stated_as_what_it_is() -> None:
    cheap = NoisePlan(popularity=50.0, train=60.0, validate=70.0, participations=3, epsilon=0.42)
    facts = privacy_facts(config(epsilon=8.0), devices=10, noise=cheap)
    assert facts["epsilon"] == 0.42
    assert "(0.42, 1e-05)" in facts["statement"]
    assert "at most 3 training rounds" in facts["statement"]


def test_every_number_that_bears_on_the_guarantee_is_there() -> None:
    settings = config()
    facts = privacy_facts(settings, devices=77, noise=plan(settings))
    assert facts["unit"] == "one window of up to 32 consecutive events of one person"
    assert facts["adjacency"] == "add or remove one unit"
    assert facts["mechanism"] == "Gaussian"
    assert facts["clip_norm"] == settings.training.clip_norm
    assert (facts["participation_cap"], facts["devices"]) == (4, 77)
    assert facts["accountant"] == "exact Gaussian composition"
    assert json.loads(json.dumps(facts)) == facts


def test_the_accountant_that_priced_it_is_named() -> None:
    settings = merge(config(), {"training": {"window_sample_rate": 0.5}})
    noise = NoisePlan(popularity=5.0, train=6.0, validate=7.0, participations=3, epsilon=4.2)
    assert privacy_facts(settings, devices=1, noise=noise)["accountant"].startswith("opacus RDP 1.")


def test_each_trust_says_who_must_be_trusted() -> None:
    texts = {}
    for trust in ("aggregate", "local"):
        settings = config(trust=trust)
        texts[trust] = privacy_facts(settings, devices=1, noise=plan(settings))["statement"]
    assert "the server sees the single replies and is trusted to look only at their sum" in texts["aggregate"]
    assert "Each device adds all of this noise itself" in texts["local"]
    assert "trusted to look" not in texts["local"]


def test_what_is_not_covered_is_said_in_full() -> None:
    settings = config()
    facts = privacy_facts(settings, devices=1, noise=plan(settings))
    assert facts["not_covered"] == list(NOT_COVERED)
    for gap in NOT_COVERED:
        assert gap in facts["statement"]
    assert "A person with several units is protected less than one unit is." in facts["statement"]
