"""The ledger: what each device's data has flowed into, written before it flows.

A ledger lives in files of its own, apart from events and adapters, so that it survives both. One file can hold the
ledgers of many virtual devices. Prices are not stored: `shared.privacy.accounting` computes them from the releases.
Which damage is noticed, and what to do about it, is `shared.privacy.chain`'s table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from shared.errors import BudgetError, PrivacyError
from shared.privacy.accounting import Release, epsilon_of
from shared.privacy.chain import Chain, Row, read_entry

#: An epsilon may exceed its limit by this much, relatively: the precision of the prices that planned it.
TOLERANCE = 1e-6


class Ledger:
    """All devices' ledgers in one hash-chained SQLite file.

    durable: wait for the disk on every charge (real devices); a simulation only waits for the operating system.
    witness: a second file that remembers how far each ledger went; None goes without, and then a ledger put back from
    a backup is not noticed.

    Every method raises PrivacyError when the ledger is damaged, lost or behind its witness.
    """

    def __init__(self, path: str | Path, *, durable: bool = True, witness: str | Path | None = None) -> None:
        self._chain = Chain(path, durable=durable, witness=witness)

    def releases(self, device: int) -> list[Release]:
        """What a device has been charged for, oldest first; the releases of one charge in the order given."""
        return _releases(self._chain.rows(device))

    def devices(self) -> list[int]:
        """Devices that have been charged at least once."""
        return self._chain.owners()

    def spent(self, device: int, *, unit: str, delta: float) -> float:
        """Epsilon at `delta` that a device has spent so far on one unit: event or user."""
        return _price(self.releases(device), unit=unit, delta=delta)

    def charge(
        self, device: int, releases: Sequence[Release], *, key: str, budgets: Mapping[str, float], delta: float
    ) -> bool:
        """Write releases, all or none, before they happen; True when they were new.

        budgets: epsilon at `delta` for each unit that is charged, for the whole life of the device.

        | case | result |
        |---|---|
        | the budget of any unit would be exceeded, or is not a number | BudgetError, nothing written |
        | `key` was charged before with the same releases | False, nothing written, whatever the budget |
        | `key` was charged before with other releases | PrivacyError, nothing written |
        | no release, or a unit without a budget | PrivacyError, nothing written |
        | the disk is full, the file locked or read-only | PrivacyError, nothing written |

        An error means that nothing may be released. A key names one deterministic release (run, round, phase,
        adapter): answering it again gives away nothing new only because a simulation's seeded noise makes the answer
        identical. Real devices use fresh keys.
        """
        units = sorted({release.unit for release in releases})
        if not units or not set(units) <= set(budgets):
            raise PrivacyError(f"found releases for units {units}; expected one or more of {sorted(budgets)}")

        def check(past: Sequence[Row]) -> None:
            known = _releases(past)
            for unit in units:
                cost = _price([*known, *releases], unit=unit, delta=delta)
                if not cost <= budgets[unit] * (1 + TOLERANCE):
                    raise BudgetError(
                        f"this release would bring the device to {unit}-level epsilon {cost:.3f} at delta {delta:g};"
                        f" its limit is {budgets[unit]:.3f}. It goes on ranking and stops training"
                    )

        entry = {"releases": [asdict(release) for release in releases]}
        return self._chain.append(device, key=key, entry=entry, check=check)

    def close(self) -> None:
        """Close the files."""
        self._chain.close()


def read_releases(entry: Mapping[str, Any]) -> list[Release]:
    """The releases that one entry of a ledger holds; PrivacyError when this version cannot read them."""
    try:
        return [Release(**values) for values in entry["releases"]]
    except (KeyError, TypeError) as error:
        raise PrivacyError(
            f"found a ledger entry without releases that this version can read ({error!r}); training stops;"
            " use the version that wrote it"
        ) from None


def _releases(rows: Sequence[Row]) -> list[Release]:
    return [release for row in rows for release in _parsed(row.text)]


@lru_cache(maxsize=4096)  # devices of one simulation are charged the same over and over
def _parsed(text: str) -> tuple[Release, ...]:
    return tuple(read_releases(read_entry(text)))


def _price(releases: Sequence[Release], *, unit: str, delta: float) -> float:
    return epsilon_of([release for release in releases if release.unit == unit], delta=delta)
