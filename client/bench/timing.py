"""What one measurement comes to, and what it should have come to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

#: Requests before the first that counts.
WARM_UP = 5

Request = Callable[[], object]


@dataclass(frozen=True)
class Target:
    """What a row must reach: milliseconds, `ratio`, failed and stale answers at most, `recall` at least. None: none."""

    p50: float | None = None
    p99: float | None = None
    recall: float | None = None
    ratio: float | None = None
    failed: int | None = None
    stale: int | None = None

    def __str__(self) -> str:
        named = {"p50 <=": self.p50, "p99 <=": self.p99, "recall >=": self.recall, "ratio <=": self.ratio}
        named |= {"failed <=": self.failed, "stale <=": self.stale}
        return ", ".join(f"{name} {number:g}" for name, number in named.items() if number is not None)


@dataclass(frozen=True)
class Figures:
    """Milliseconds of single requests. memory: bytes, of what the row says. recall: share of the true best found.

    ratio: p50 over that of what the row compares with. failed: answers that were none. stale: items shown though they
    had been recorded before.
    """

    p50: float
    p99: float
    least: float
    requests: int
    memory: int | None = None
    recall: float | None = None
    ratio: float | None = None
    failed: int | None = None
    stale: int | None = None

    def reach(self, target: Target) -> bool | None:
        """Whether every target is met; None without any."""
        pairs = [(self.p50, target.p50), (self.p99, target.p99), (self.ratio, target.ratio)]
        pairs += [(self.failed, target.failed), (self.stale, target.stale)]
        kept = [found is not None and found <= most for found, most in pairs if most is not None]
        if target.recall is not None:
            kept.append(self.recall is not None and self.recall >= target.recall)
        return all(kept) if kept else None

    def to_dict(self) -> dict[str, Any]:
        """Figures that there are, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def timed(request: Request) -> float:
    """Milliseconds that a request took."""
    started = time.perf_counter()
    request()
    return (time.perf_counter() - started) * 1e3


def measure(cases: Iterable[Request], *, requests: int) -> Figures:
    """The figures of so many requests after a few to warm up. What makes a case ready is not timed."""
    return summed_up([timed(request) for request in islice(cases, WARM_UP + requests)][WARM_UP:])


def summed_up(taken: list[float]) -> Figures:
    """The figures of milliseconds."""
    p50, p99 = np.percentile(taken, [50, 99])
    return Figures(float(p50), float(p99), min(taken), len(taken))
