"""The privacy statement that goes with every adapter: numbers from the ledger, and the same in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shared.privacy.accounting import Release, accountant_of, epsilon_of
from shared.privacy.ledger import read_releases

NOT_COVERED = (
    "a server or device that runs other software than this one",
    "runs on the same people that this ledger does not know, such as runs without privacy or made to choose settings",
    "the fact that a device took part, and when",
    "what a person's own device shows to whoever uses it",
    "rounding of noise to floating-point numbers, and the strength of the random generator",
)

SEEDED = "whoever knows this simulation's seed, which stands in the adapter's manifest: the noise is drawn from it"

UNIT_NAMES = {
    "event": "one window of up to {history} consecutive events of one person",
    "user": "everything one person did",
}

BANNER = (
    "No privacy: updates were sent without noise. Whoever sees an update or this adapter may learn what a person did."
    " Use it for experiments on public data only."
)


def privacy_facts(
    entries: Sequence[Mapping[str, Any]], *, run: str, started_from: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The content of privacy.json, from the server's ledger alone; epsilon is never a typed-in number.

    entries: all of the ledger's, oldest first. A run that the ledger does not know had no privacy. started_from: the
    adapters that this run's start came from, see `server.shipping.begun_from`; what they cost is named beside it.
    """
    facts = _of_this_run(entries, run=run)
    if not started_from:
        return facts
    words = " ".join([facts["statement"], *map(_earlier_in_words, started_from)])
    return {**facts, "started_from": [dict(earlier) for earlier in started_from], "statement": words}


def _earlier_in_words(earlier: Mapping[str, Any]) -> str:
    begun = f"The run started from the adapter of run {earlier['run']}"
    if not earlier["layers"]:
        return f"{begun}, which was trained without privacy: what that adapter shows of people is not covered."
    if earlier["in_ledger"]:
        return f"{begun}, which is one of the earlier runs of the ledger."
    spent = " and ".join(
        f"({layer['epsilon']:.2f}, {earlier['delta']:g})-differentially private for adding or removing {layer['unit']}"
        for layer in earlier["layers"].values()
    )
    return f"{begun}, which is {spent}; for a person who took part in both runs, the two add up."


def _of_this_run(entries: Sequence[Mapping[str, Any]], *, run: str) -> dict[str, Any]:
    opened = [entry for entry in entries if entry["kind"] == "run"]
    plan = next((entry["facts"] for entry in opened if entry["run"] == run), None)
    if plan is None:
        return {"mode": "none", "statement": BANNER}
    layers = {unit: _layer(entries, run, plan, unit) for unit in plan["units"]}
    earlier = [entry["run"] for entry in opened].index(run)
    unprotected = {
        unit: sum(1 for entry in opened[:earlier] if unit not in entry["facts"]["units"]) for unit in plan["units"]
    }
    facts: dict[str, Any] = {
        "mode": plan["mode"],
        "trust": plan["trust"],
        "secure_aggregation": plan["secure_aggregation"],
        "adjacency": "add or remove one unit",
        "delta": plan["delta"],
        "layers": layers,
        "participation_cap": None if plan["amplified"] and plan["mode"] == "user" else plan["participation_cap"],
        "devices": plan["devices"],
        "rounds_released": sum(1 for entry in entries if entry["run"] == run and entry.get("phase") == "train"),
        "earlier_runs": earlier,
        "earlier_runs_not_protecting": unprotected,
        "not_covered": [*NOT_COVERED, *([SEEDED] if plan["seeded"] else [])],
    }
    return {**facts, "statement": _in_words(facts)}


def charged_to_one(
    entries: Sequence[Mapping[str, Any]], *, run: str, plan: Mapping[str, Any], unit: str
) -> list[Release]:
    """Everything of a run that one unit's data can have flowed into, at worst.

    A unit is in every count and comparison, but in at most `participation_cap` training rounds: those with the least
    noise. Where rounds are priced with a sampling rate for people, all of them count.
    """
    mine = [e for e in entries if e["kind"] == "release" and e["run"] == run]
    releases = [r for entry in mine for r in read_releases(entry["facts"]) if r.unit == unit]
    training = [release for release in releases if release.phase == "train"]
    others = [release for release in releases if release.phase != "train"]
    if not plan["amplified"] or unit != "user":
        training = sorted(training, key=lambda r: r.noise_multiplier**2 / r.steps)[: plan["participation_cap"]]
    return others + training


def _layer(entries: Sequence[Mapping[str, Any]], run: str, plan: Mapping[str, Any], unit: str) -> dict[str, Any]:
    releases = charged_to_one(entries, run=run, plan=plan, unit=unit)
    every_run = [
        release
        for entry in entries
        if entry["kind"] == "run" and unit in entry["facts"]["units"]
        for release in charged_to_one(entries, run=entry["run"], plan=entry["facts"], unit=unit)
    ]
    known = {phase: [r.noise_multiplier for r in releases if r.phase == phase] for phase in plan["phases"]}
    return {
        "unit": UNIT_NAMES[unit].format(history=plan["history"]),
        "epsilon": epsilon_of(releases, delta=plan["delta"]),
        "budget": plan["budgets"][unit],
        "epsilon_all_runs": epsilon_of(every_run, delta=plan["delta"]),
        "mechanism": _mechanism(releases, plan),
        "accountant": accountant_of(releases),
        "noise_multipliers": {phase: min(values) for phase, values in known.items() if values},
        "clip": plan["clips"][unit],
    }


def _mechanism(releases: Sequence[Release], plan: Mapping[str, Any]) -> str:
    if any(release.l2 for release in releases):
        return "Skellam noise on integers, shared by the devices"
    amplified = ", Poisson-sampled cohorts" if any(r.unit == "user" and r.sample_rate < 1 for r in releases) else ""
    bands = f", anticorrelated over {plan['noise_bands']} rounds" if plan["noise_bands"] > 1 else ""
    return f"Gaussian{bands}{amplified}"


def _trust(facts: Mapping[str, Any]) -> str:
    if facts["trust"] == "local":
        return (
            "Each device adds all of this noise itself, so nobody else has to be trusted for it. Questions repeated"
            " after an interruption count in the devices' own ledgers only."
        )
    if facts["secure_aggregation"]:
        return (
            "Each device adds a share of the noise and secure aggregation shows the server nothing but the sum, which"
            " carries all of it, as long as at least the quorum of devices is honest."
        )
    if "user" in facts["layers"]:
        return (
            "The server adds this noise to the sum. Without secure aggregation it sees the single replies and is"
            " trusted to look only at their sum."
        )
    return (
        "Each device adds a share of the noise and the sum carries all of it. Without secure aggregation the server"
        " sees the single replies and is trusted to look only at their sum."
    )


def _in_words(facts: Mapping[str, Any]) -> str:
    cap = facts["participation_cap"]
    rounds = "randomly drawn training rounds," if cap is None else f"at most {cap} training round{'s' * (cap > 1)},"
    protected = " ".join(
        f"For adding or removing {layer['unit']}, everything that this run took from it (a popularity count,"
        f"{' the moments of the prior,' if 'prior' in layer['noise_multipliers'] else ''}"
        f"{'' if cap == 0 else f' {rounds}'} one quality comparison) is"
        f" ({layer['epsilon']:.2f}, {facts['delta']:g})-differentially private."
        for layer in facts["layers"].values()
    )
    if set(facts["layers"]) == {"event"}:
        protected += " A person with several such windows is protected less than one window is."
    earlier = facts["earlier_runs"]
    totals = " and ".join(f"{layer['epsilon_all_runs']:.2f}" for layer in facts["layers"].values())
    history = (
        "The ledger knows no earlier run on these people."
        if not earlier
        else f"The ledger knows {earlier} earlier {'run' if earlier == 1 else 'runs'} on these people; with them it"
        f" adds up to epsilon {totals}."
    )
    for unit, count in facts["earlier_runs_not_protecting"].items():
        if count:
            history += (
                f" {count} of them did not protect this unit ({unit}) and {'is' if count == 1 else 'are'} not in it."
            )
    return f"{protected} {_trust(facts)} {history} Not covered: {'; '.join(facts['not_covered'])}."
