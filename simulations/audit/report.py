"""What an audit found: as plain values, as tables for a terminal, and as rows of a document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from simulations.audit.aggregator import ERROR, MOST_EPSILON, AggregatorAudit
from simulations.audit.membership import FALSE_POSITIVES, MembershipAudit

COLUMNS = ("claimed ε", "lower bound", "lower bound, Gaussian", "estimate", "verdict")
MEMBERSHIP_COLUMNS = ("claimed ε", "TPR at 1 % FPR", "95 % interval", "ceiling", "measured FPR", "AUC")


def audit_report(audit: AggregatorAudit, attacks: Sequence[MembershipAudit]) -> dict[str, Any]:
    """The object of `audit --json`. `passed` is False when a lower bound exceeds its claim."""
    claim = audit.claim
    return {
        "passed": has_passed(audit, attacks),
        "aggregator": {
            "epsilon": claim.epsilon,
            "delta": claim.delta,
            "participations": claim.participations,
            "noise_multiplier": claim.noise_multiplier,
            "canaries": audit.canaries,
            "rounds": audit.rounds,
            "confidence": 1 - ERROR,
            "lower_bound": audit.lower,
            "lower_bound_gaussian": audit.lower_gaussian,
            "estimate": audit.estimate,
            "passed": audit.passed,
            "attacks": [
                {
                    "name": attack.name,
                    "guesses": attack.guesses.made,
                    "right": attack.guesses.right,
                    "lower_bound": attack.lower,
                    "lower_bound_gaussian": attack.lower_gaussian,
                }
                for attack in audit.attacks
            ],
        },
        "membership": [
            {
                "epsilon": attack.epsilon,
                "delta": attack.delta,
                "trials": attack.trials,
                "intended_false_positive_rate": FALSE_POSITIVES,
                "false_positive_rate": attack.alarms / attack.trials,
                "true_positive_rate": attack.rate,
                "low": attack.interval[0],
                "high": attack.interval[1],
                "auc": attack.auc,
                "ceiling": attack.ceiling,
                "passed": attack.passed,
            }
            for attack in attacks
        ],
    }


def has_passed(audit: AggregatorAudit, attacks: Sequence[MembershipAudit]) -> bool:
    """False when any lower bound exceeds its claim: the command then ends with exit code 1."""
    return audit.passed and all(attack.passed for attack in attacks)


def audit_cells(audit: AggregatorAudit) -> tuple[str, ...]:
    """One audit under COLUMNS."""
    estimate = f"over {MOST_EPSILON:.0f}" if audit.estimate >= MOST_EPSILON else f"{audit.estimate:.2f}"
    verdict = "not refuted" if audit.passed else "refuted"
    return (f"{audit.claim.epsilon:g}", f"{audit.lower:.2f}", f"{audit.lower_gaussian:.2f}", estimate, verdict)


def audit_tables(audit: AggregatorAudit, attacks: Sequence[MembershipAudit]) -> Group:
    """Both audits for a terminal, with what they mean in a sentence each."""
    claim = audit.claim
    shown = _table("the server's aggregator", COLUMNS, [audit_cells(audit)])
    facts = (
        f"{audit.canaries:,} canaries in {audit.rounds:,} rounds, delta {claim.delta:g}, "
        f"{claim.participations} rounds a person. Both bounds hold with {1 - ERROR:.0%} confidence."
    )
    best = audit.best.guesses
    proof = f"The best attack ({audit.best.name}) guessed {best.right} of {best.made} memberships."
    verdict = (
        Text("No lower bound exceeds the claim; that does not prove it.", style="green")
        if audit.passed
        else Text("A lower bound exceeds the claim: the noise does not give the privacy that is stated.", style="red")
    )
    rows = [membership_cells(attack) for attack in attacks]
    heading = "membership inference on one window of events"
    return Group(shown, Text(facts), Text(proof), verdict, Text(), _table(heading, MEMBERSHIP_COLUMNS, rows))


def membership_cells(attack: MembershipAudit) -> tuple[str, ...]:
    """One attack under MEMBERSHIP_COLUMNS."""
    claimed = "no noise" if attack.epsilon is None else f"{attack.epsilon:g}"
    low, high = attack.interval
    return (
        claimed,
        f"{attack.rate:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{attack.ceiling:.1%}",
        f"{attack.alarms / attack.trials:.1%}",
        f"{attack.auc:.3f}",
    )


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=Text(title, style="bold"), title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table
