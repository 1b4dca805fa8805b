"""What taking part has cost, as the ledger adds it up, and what has left the device."""

from __future__ import annotations

from dataclasses import dataclass, field

from client.limits import Limits
from client.profile import Profile
from client.service.answered import LayerOut
from shared.errors import PrivacyError
from shared.privacy.ledger import Ledger

KEPT = (
    "The ledger stays: what earlier rounds gave away they have given away, and a ledger at zero would promise the same"
    " person a second budget. It holds noise levels and dates, nothing of what you did."
)


@dataclass(frozen=True)
class Account:
    """Spent and budget by unit. problem: why the ledger cannot be read, empty when it can."""

    layers: list[LayerOut] = field(default_factory=list)
    problem: str = ""


def account(profile: Profile, limits: Limits) -> Account:
    """What the ledger says; nothing is written. A ledger that nobody has needed yet has spent nothing."""
    if not profile.ledger.exists():
        return Account([_layer(unit, 0.0, budget, limits) for unit, budget in _budgets(limits).items()])
    try:
        ledger = Ledger(profile.ledger, witness=profile.witness)
        try:
            spent = {unit: ledger.spent(0, unit=unit, delta=limits.delta) for unit in _budgets(limits)}
        finally:
            ledger.close()
    except PrivacyError as error:
        return Account([], str(error))
    return Account([_layer(unit, spent[unit], budget, limits) for unit, budget in _budgets(limits).items()])


def _budgets(limits: Limits) -> dict[str, float]:
    wanted = {"event": ("event",), "user": ("user",), "none": ()}.get(limits.mode, ("event", "user"))
    return {unit: budget for unit, budget in limits.budgets.items() if unit in wanted}


def _layer(unit: str, spent: float, budget: float, limits: Limits) -> LayerOut:
    return LayerOut(unit=unit, spent=spent, budget=budget, delta=limits.delta)
