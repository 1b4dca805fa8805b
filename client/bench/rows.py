"""The rows that `homerank-client benchmark` can measure, and how a table tells them."""

from __future__ import annotations

import difflib
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from client.bench import large, ranking, search, serving, storage
from client.bench.timing import Figures, Target
from client.bench.workbench import Workbench
from shared.errors import ConfigError


@dataclass(frozen=True)
class Row:
    """One line of the table. usual: measured unless rows are named."""

    about: str
    run: Callable[[Workbench], Figures]
    target: Target = field(default_factory=Target)
    usual: bool = True


ROWS: dict[str, Row] = {
    "slate": Row(
        "event to slate, LoRA part cached", lambda b: ranking.after_an_event(b, stage="adapter"), Target(p50=15, p99=40)
    ),
    "slate-prior": Row(
        "event to slate, content + prior alone", lambda b: ranking.after_an_event(b, stage="prior"), Target(p50=2)
    ),
    "slate-start": Row(
        "event to slate, content + popularity alone", lambda b: ranking.after_an_event(b, stage="start")
    ),
    "slate-int8": Row(
        "the same with the exported int8 model (--model)",
        lambda b: ranking.after_an_event(b, stage="adapter", engine=b.exported("int8")),
        usual=False,
    ),
    "slate-student": Row(
        "the same with the distilled student (--model)",
        lambda b: ranking.after_an_event(b, stage="adapter", engine=b.exported("student")),
        Target(p50=3),
        usual=False,
    ),
    "slate-full": Row("event to slate, window full: trunk reads all anew", ranking.full_window),
    "slate-again": Row("another slate of the same state", ranking.again),
    "slate-stateless": Row("slate of a whole history, no state kept", ranking.without_state),
    "slate-100k": Row(f"event to slate of {large.ITEMS:,} items, 1,000 proposed", large.slate, usual=False),
    "exact-100k": Row(
        f"{search.BEST} best of {search.MANY:,} random vectors of {search.WIDE}, exact",
        search.exact,
        Target(p50=5, recall=1),
    ),
    "cells-1m": Row(
        f"{search.BEST} best of {search.VERY_MANY:,} vectors of {search.NARROW}, nearest cells",
        search.cells,
        Target(p50=5, recall=0.95),
    ),
    "exact-1m": Row("the same, exact", search.scan, usual=False),
    "graph-1m": Row("the same, graph of usearch", search.graph, usual=False),
    "store-1m": Row(
        "event written and ranked, 1,000,000 stored (ratio: to 1,000 stored)", storage.recommend, Target(ratio=1.2)
    ),
    "start": Row(
        "from starting the service to its first slate, vectors cached", serving.start, Target(p50=6_000), usual=False
    ),
    "start-student": Row(
        "the same with the distilled student (--model), without torch",
        lambda b: serving.start(b, engine="student"),
        Target(p50=1_500),
        usual=False,
    ),
    "load": Row(
        "50 requests in parallel for 60 s, events written, one change of adapter",
        serving.load,
        Target(failed=0, stale=0),
        usual=False,
    ),
    "forget-1m": Row("forgetting 1,000,000 events", storage.forget, Target(p50=5_000)),
}
COLUMNS = (
    "row",
    "measured",
    "p50 ms",
    "p99 ms",
    "least ms",
    "memory MB",
    "recall@100",
    "ratio",
    "failed",
    "stale",
    "must reach",
    "reached",
)


def chosen(names: Sequence[str]) -> dict[str, Row]:
    """The named rows in the order of `ROWS`, or the usual ones. ConfigError for a name that no row has."""
    for name in names:
        if name not in ROWS:
            close = difflib.get_close_matches(name, ROWS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"found row {name!r}; expected one of {', '.join(ROWS)}.{hint}")
    return {name: row for name, row in ROWS.items() if (name in names if names else row.usual)}


def cells_of(name: str, row: Row, found: Figures) -> list[str]:
    """The line of a row, as texts under `COLUMNS`."""
    reached = found.reach(row.target)
    optional = [
        "" if found.memory is None else f"{found.memory / 1e6:,.0f}",
        "" if found.recall is None else f"{found.recall:.3f}",
        "" if found.ratio is None else f"{found.ratio:.2f}",
        "" if found.failed is None else f"{found.failed} of {found.requests:,}",
        "" if found.stale is None else str(found.stale),
        str(row.target),
        "" if reached is None else "yes" if reached else "no",
    ]
    return [name, row.about, f"{found.p50:.2f}", f"{found.p99:.2f}", f"{found.least:.2f}", *optional]


def machine() -> dict[str, object]:
    """Where and when this is measured."""
    import torch

    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
