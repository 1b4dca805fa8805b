"""What a monitor may see of the service: nothing that says what, when or how much its person does.

So there is no count of requests or events; how long rankings take is a median over the newest ones.
"""

from __future__ import annotations

import time
from collections import deque
from statistics import median, quantiles

from client.service.person import Person

KEPT = 200


class Gauges:
    """Figures of one service."""

    def __init__(self) -> None:
        self._started = time.time()
        self._ranked: deque[float] = deque(maxlen=KEPT)
        self._failed = 0

    def ranked(self, seconds: float) -> None:
        """A ranking took so long."""
        self._ranked.append(seconds)

    def failed(self) -> None:
        """A request ended in an error of the service itself."""
        self._failed += 1

    def text(self, person: Person, *, training: str) -> str:
        """The exposition format of Prometheus."""
        import psutil  # type: ignore[import-untyped]

        times = list(self._ranked)
        slow = quantiles(times, n=100)[98] if len(times) > 1 else median(times or [0.0])
        rows = [
            ("start_time_seconds", "When the service started, seconds UTC.", self._started),
            ("resident_memory_bytes", "Memory of the service.", psutil.Process().memory_info().rss),
            ("ready", "1 when there is a catalogue to rank.", float(not person.empty)),
            ("catalogue_items", "Items of the catalogue.", 0 if person.empty else len(person.shop.catalogue)),
            ("rank_seconds_median", f"Median over the newest {KEPT} rankings at most.", median(times or [0.0])),
            ("rank_seconds_p99", "The same, 99th percentile.", slow),
            ("internal_errors_total", "Requests that failed through a fault of the service.", self._failed),
            ("training", "1 while a training round runs.", float(training == "training")),
        ]
        lines = []
        for name, text, value in rows:
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP homerank_{name} {text}", f"# TYPE homerank_{name} {kind}", f"homerank_{name} {value}"]
        return "\n".join(lines) + "\n"
