"""What a run has spent of its budget so far, as the server's ledger prices it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.privacy.accounting import epsilon_of
from shared.privacy.statement import charged_to_one


@dataclass(frozen=True)
class Spent:
    """Epsilon at `delta` spent so far on one unit (event or user), at worst, and the budget of the run."""

    unit: str
    epsilon: float
    budget: float
    delta: float


def spent_by(entries: Sequence[Mapping[str, Any]], *, run: str) -> tuple[Spent, ...]:
    """What a run's releases cost so far, by unit; () for a run that the ledger does not know, which had no privacy.

    entries: all of the ledger's, oldest first.
    """
    plan = next((entry["facts"] for entry in entries if entry["kind"] == "run" and entry["run"] == run), None)
    if plan is None:
        return ()
    return tuple(
        Spent(
            unit,
            epsilon_of(charged_to_one(entries, run=run, plan=plan, unit=unit), delta=plan["delta"]),
            plan["budgets"][unit],
            plan["delta"],
        )
        for unit in plan["units"]
    )
