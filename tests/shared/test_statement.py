"""The statement says what was spent, never a typed-in number, and never less than is true."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pytest

from server.budget import phase_noise, plan_budget, run_facts
from server.ledger import ServerLedger
from shared.config import Config, merge
from shared.privacy.accounting import Release, epsilon_of
from shared.privacy.statement import BANNER, NOT_COVERED, SEEDED, privacy_facts

DEVICES = 20
SIZES = {"popularity": 30, "prior": 50, "train": 40, "validate": 2}
MODES = ("event", "user", "both")


def config(**privacy: Any) -> Config:
    federation, prior = privacy.pop("federation", {}), privacy.pop("prior", {})
    settings = {"mode": "event", **privacy}
    return merge(
        Config(),
        {
            "privacy": settings,
            "federation": {"rounds": 6, "cohort": 5, **federation},
            "model": {"history": 32},
            "prior": {"half_lives": [], **prior},
        },
    )


def spend(ledger: ServerLedger, settings: Config, *, run: str, rounds: int | None = None, seeded: bool = False) -> None:
    """What a server writes in a run of so many rounds."""
    plan = plan_budget(settings, DEVICES, dimensions=SIZES)
    assert plan is not None
    ledger.open_run(run, run_facts(settings, plan, devices=DEVICES, seeded=seeded))
    rounds = settings.federation.rounds if rounds is None else rounds
    counted = ["popularity", *(["prior"] if settings.prior.half_lives else [])]
    training = [("train", number + 1) for number in range(rounds)]
    for phase, number in [*((phase, 0) for phase in counted), *training, ("validate", rounds)]:
        noise = phase_noise(settings, plan, phase=phase, asked=5 if phase == "train" else DEVICES)
        rate = settings.training.window_sample_rate if phase == "train" else 1.0
        releases = noise.releases(phase, dimension=SIZES[phase], sample_rate=rate)
        if plan.user_steps:  # a round of the server is one of the many that devices are charged for at once
            releases = [Release(r.phase, r.noise_multiplier, r.sample_rate, 1, r.unit) for r in releases]
        ledger.charge(run=run, phase=phase, round=number, facts={"releases": [asdict(r) for r in releases]})


def facts_of(settings: Config, *, rounds: int | None = None, seeded: bool = False) -> dict[str, Any]:
    ledger = ServerLedger(":memory:")
    spend(ledger, settings, run="r", rounds=rounds, seeded=seeded)
    return privacy_facts(ledger.entries(), run="r")


@pytest.mark.parametrize("entries", [[], [{"kind": "run", "run": "another", "facts": {}}]], ids=["none", "another"])
def test_without_privacy_it_promises_nothing(entries: list[dict[str, Any]]) -> None:
    facts = privacy_facts(entries, run="r")
    assert facts == {"mode": "none", "statement": BANNER}
    assert facts["statement"].startswith("No privacy: updates were sent without noise.")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_epsilon_is_what_the_written_releases_add_up_to(mode: str, epsilon: float) -> None:
    settings = config(mode=mode, epsilon=epsilon, user_epsilon=2 * epsilon)
    facts = facts_of(settings)
    assert facts["participation_cap"] == 2  # 6 rounds of 5 out of 20
    for unit, layer in facts["layers"].items():
        z = layer["noise_multipliers"]
        releases = [Release("popularity", z["popularity"]), Release("train", z["train"], 1.0, 2)]
        releases.append(Release("validate", z["validate"]))
        assert layer["epsilon"] == pytest.approx(epsilon_of(releases, delta=facts["delta"]))
        assert layer["epsilon"] <= layer["budget"] * (1 + 1e-9)
        assert layer["budget"] == (2 * epsilon if (mode, unit) == ("both", "user") else epsilon)
        assert f"({layer['epsilon']:.2f}, 1e-05)-differentially private" in facts["statement"]
    assert max(layer["epsilon"] / layer["budget"] for layer in facts["layers"].values()) == pytest.approx(1.0)


ASKED = {"half_lives": [2.0], "widths": [8], "folds": 1}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("secure", [False, True])
def test_the_moments_of_a_prior_are_in_the_sum_and_in_the_words(mode: str, secure: bool) -> None:
    facts = facts_of(config(mode=mode, prior=ASKED, federation={"secure_aggregation": secure}))
    assert "(a popularity count, the moments of the prior, at most 2 training rounds, one quality" in facts["statement"]
    for layer in facts["layers"].values():
        z = layer["noise_multipliers"]
        assert set(z) == {"popularity", "prior", "train", "validate"}
        assert layer["epsilon"] <= layer["budget"] * (1 + 1e-9)
        if not secure:
            releases = [Release(phase, z[phase]) for phase in ("popularity", "prior", "validate")]
            releases.append(Release("train", z["train"], 1.0, 2))
            assert layer["epsilon"] == pytest.approx(epsilon_of(releases, delta=1e-5))
    without = facts_of(config(mode=mode))
    assert "prior" not in without["statement"]
    assert all("prior" not in layer["noise_multipliers"] for layer in without["layers"].values())


def test_a_run_without_training_names_none() -> None:
    facts = facts_of(config(mode="both", prior=ASKED, federation={"rounds": 0}))
    taken = "(a popularity count, the moments of the prior, one quality comparison)"
    assert facts["statement"].count(taken) == 2
    assert (facts["participation_cap"], facts["rounds_released"]) == (0, 0)
    assert max(layer["epsilon"] for layer in facts["layers"].values()) == pytest.approx(8.0, rel=1e-6)


def test_a_run_that_spends_less_than_the_budget_is_stated_as_what_it_is() -> None:
    whole, part = facts_of(config()), facts_of(config(), rounds=1)
    spent = part["layers"]["event"]["epsilon"]
    assert spent < 0.8 * whole["layers"]["event"]["epsilon"]
    assert f"({spent:.2f}, 1e-05)" in part["statement"]
    assert (part["rounds_released"], whole["rounds_released"]) == (1, 6)
    one = facts_of(config(federation={"rounds": 1}))
    assert "at most 1 training round, one quality comparison" in one["statement"]


def test_rounds_with_the_least_noise_are_those_a_unit_is_charged_for() -> None:
    """Nobody knows in which rounds a given person took part; the statement holds for everyone."""
    ledger = ServerLedger(":memory:")
    settings = config(mode="user")
    plan = plan_budget(settings, DEVICES)
    assert plan is not None
    ledger.open_run("r", run_facts(settings, plan, devices=DEVICES, seeded=False))
    for number, z in enumerate((9.0, 2.0, 5.0, 3.0), start=1):
        release = asdict(Release("train", z, unit="user"))
        ledger.charge(run="r", phase="train", round=number, facts={"releases": [release]})
    layer = privacy_facts(ledger.entries(), run="r")["layers"]["user"]
    assert layer["epsilon"] == epsilon_of([Release("train", 2.0), Release("train", 3.0)], delta=1e-5)
    assert layer["noise_multipliers"] == {"train": 2.0}


def test_every_number_that_bears_on_the_guarantee_is_there() -> None:
    settings = config(mode="both", user_clip=0.7)
    facts = facts_of(settings)
    assert facts["layers"]["event"]["unit"] == "one window of up to 32 consecutive events of one person"
    assert facts["layers"]["user"]["unit"] == "everything one person did"
    assert facts["adjacency"] == "add or remove one unit"
    assert (facts["mode"], facts["trust"], facts["secure_aggregation"]) == ("both", "aggregate", False)
    assert (facts["participation_cap"], facts["devices"], facts["delta"]) == (2, DEVICES, 1e-5)
    for unit, clip in {"event": settings.training.clip_norm, "user": 0.7}.items():
        layer = facts["layers"][unit]
        assert (layer["mechanism"], layer["clip"]) == ("Gaussian", clip)
        assert layer["accountant"] == "exact Gaussian composition (arXiv 1805.06530)"
    assert json.loads(json.dumps(facts)) == facts


def test_the_mechanism_and_the_accountant_are_those_of_the_releases() -> None:
    sampled = facts_of(config(mode="user", federation={"sampling": "poisson"}))["layers"]["user"]
    assert sampled["mechanism"] == "Gaussian, Poisson-sampled cohorts"
    assert sampled["accountant"].startswith("privacy loss distributions, dp_accounting")
    assert sampled["epsilon"] == pytest.approx(8.0, rel=1e-2)  # all six rounds at rate 1/4, not two at rate 1
    federation = {"sampling": "cyclic", "aggregation": "ffa"}
    bands = facts_of(config(mode="user", noise_bands=3, federation=federation))["layers"]["user"]
    assert bands["mechanism"] == "Gaussian, anticorrelated over 3 rounds"
    integer = facts_of(config(mode="user", federation={"secure_aggregation": True}))["layers"]["user"]
    assert integer["mechanism"] == "Skellam noise on integers, shared by the devices"
    assert integer["accountant"].startswith("Renyi bound of the Skellam mechanism")


#: (mode, trust, secure aggregation): what the statement says about trust.
WAYS: dict[tuple[str, str, bool], str] = {
    **{(mode, "local", False): "Each device adds all of this noise itself" for mode in MODES},
    **{(mode, "aggregate", True): "secure aggregation shows the server nothing but the sum" for mode in MODES},
    ("event", "aggregate", False): "Each device adds a share of the noise and the sum carries all of it. Without",
    ("user", "aggregate", False): "The server adds this noise to the sum. Without",
    ("both", "aggregate", False): "The server adds this noise to the sum. Without",
}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way)))
def test_each_way_names_unit_epsilon_delta_and_who_must_be_trusted(way: tuple[str, str, bool]) -> None:
    mode, trust, secure = way
    facts = facts_of(config(mode=mode, trust=trust, federation={"secure_aggregation": secure}))
    text = facts["statement"]
    assert WAYS[way] in text
    assert ("trusted to look only at their sum" in text) == (trust == "aggregate" and not secure)
    for unit, words in {"event": "one window of up to 32", "user": "everything one person did"}.items():
        assert (words in text) == (unit in facts["layers"]) == (mode in (unit, "both"))
    assert text.count("-differentially private.") == len(facts["layers"])
    assert "1e-05" in text
    assert ("A person with several such windows is protected less" in text) == (mode == "event")


def test_what_is_not_covered_is_said_in_full() -> None:
    facts = facts_of(config())
    assert facts["not_covered"] == list(NOT_COVERED)
    for gap in NOT_COVERED:
        assert gap in facts["statement"]


@pytest.mark.parametrize("mode", MODES)
def test_a_seeded_run_names_whoever_knows_its_seed_and_a_deployment_does_not(mode: str) -> None:
    seeded, deployed = (facts_of(config(mode=mode), seeded=way) for way in (True, False))
    assert "seed" in SEEDED
    assert seeded["not_covered"] == [*NOT_COVERED, SEEDED]
    assert deployed["not_covered"] == list(NOT_COVERED)
    assert (SEEDED in seeded["statement"], SEEDED in deployed["statement"]) == (True, False)
    assert seeded["layers"] == deployed["layers"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sampling", ["poisson", "shuffled"])
def test_a_number_of_rounds_is_promised_only_where_the_claim_rests_on_it(mode: str, sampling: str) -> None:
    """People priced for every round at the sampling rate have no cap; windows are priced by it all the same."""
    facts = facts_of(config(mode=mode, federation={"sampling": sampling}))
    drawn = (mode, sampling) == ("user", "poisson")
    assert (facts["participation_cap"] is None) == drawn
    assert ("a popularity count, randomly drawn training rounds, one quality" in facts["statement"]) == drawn
    assert ("at most" in facts["statement"]) == (not drawn)
    assert "None" not in facts["statement"]


def test_earlier_runs_on_the_same_people_are_counted_and_added_up() -> None:
    ledger = ServerLedger(":memory:")
    found = []
    for number in range(3):
        spend(ledger, config(mode="user"), run=f"r{number}")
        found.append(privacy_facts(ledger.entries(), run=f"r{number}"))
    assert [facts["earlier_runs"] for facts in found] == [0, 1, 2]
    totals = [facts["layers"]["user"]["epsilon_all_runs"] for facts in found]
    assert totals[0] == found[0]["layers"]["user"]["epsilon"]
    assert all(later > 1.2 * before for before, later in pairwise(totals))
    alone = found[2]["layers"]["user"]
    assert alone["epsilon"] == found[0]["layers"]["user"]["epsilon"]
    z = alone["noise_multipliers"]
    everything = [
        Release("popularity", z["popularity"], 1.0, 3),
        Release("train", z["train"], 1.0, 6),
        Release("validate", z["validate"], 1.0, 3),
    ]
    assert totals[2] == pytest.approx(epsilon_of(everything, delta=1e-5))
    assert "The ledger knows no earlier run" in found[0]["statement"]
    assert (
        f"The ledger knows 1 earlier run on these people; with them it adds up to epsilon {totals[1]:.2f}"
        in (found[1]["statement"])
    )
    assert f"2 earlier runs on these people; with them it adds up to epsilon {totals[2]:.2f}" in found[2]["statement"]


def test_earlier_runs_at_the_other_level_do_not_add_to_this_one() -> None:
    ledger = ServerLedger(":memory:")
    spend(ledger, config(mode="event"), run="windows")
    spend(ledger, config(mode="both", user_epsilon=3.0), run="both")
    layers = privacy_facts(ledger.entries(), run="both")["layers"]
    assert layers["event"]["epsilon_all_runs"] > layers["event"]["epsilon"]
    assert layers["user"]["epsilon_all_runs"] == layers["user"]["epsilon"]
    statement = privacy_facts(ledger.entries(), run="both")["statement"]
    assert "1 of them did not protect this unit (user) and is not in it" in statement
    assert "(event)" not in statement
