"""Does the audit tell correct code from broken code? A markdown table for docs/privacy.md.

    PYTHONPATH=. python benchmarks/audit.py --seed 1

Claims of epsilon 2, 4 and 8 at delta 1e-5, with the correct aggregator and with each planted bug. Then the
membership-inference attack on the event layer at the same claims and without noise.
"""

from __future__ import annotations

import argparse
import platform
import time
from datetime import UTC, datetime

from server.aggregation import Aggregator
from simulations.audit.aggregator import audit_aggregator
from simulations.audit.canaries import Claim
from simulations.audit.membership import audit_membership
from simulations.audit.report import COLUMNS, MEMBERSHIP_COLUMNS, audit_cells, membership_cells
from tests.simulations.planted_bugs import BUGS

CLAIMS = (2.0, 4.0, 8.0)


def main() -> None:
    """Audit everything and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--groups", type=int, default=2048)
    parser.add_argument("--canaries", type=int, default=8)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--seed", type=int, help="drawn from the operating system unless given")
    chosen = parser.parse_args()
    started = time.perf_counter()
    print(line("code", *COLUMNS), line(*["---"] * (1 + len(COLUMNS))), sep="\n")
    for epsilon in CLAIMS:
        for name, make in {"correct": Aggregator, **BUGS}.items():
            found = audit_aggregator(
                Claim(epsilon),
                make_aggregator=make,
                groups=chosen.groups,
                canaries=chosen.canaries,
                seed=chosen.seed,
            )
            print(line(name, *audit_cells(found)), flush=True)
    print(f"\n{chosen.groups * chosen.canaries:,} canaries in {chosen.groups:,} rounds for each row.\n")
    print(line(*MEMBERSHIP_COLUMNS), line(*["---"] * len(MEMBERSHIP_COLUMNS)), sep="\n")
    for claim in (*CLAIMS, None):
        attack = audit_membership(claim, trials=chosen.trials, seed=chosen.seed)
        print(line(*membership_cells(attack)), flush=True)
    print(f"\n{chosen.trials} trials with the window and as many without for each row.")
    print(f"{platform.machine()}, Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}, ", end="")
    print(f"{time.perf_counter() - started:.0f} s in all.")


def line(*cells: str) -> str:
    """One row of a markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
