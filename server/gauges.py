"""What a monitor may see of the server: counts, lengths and budgets, of no device and no person.

Counters begin anew with a run, as after a restart; Prometheus expects that of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from server.glance import Glance

Sample = tuple[Mapping[str, str], float | None]


def exposition(found: Glance) -> str:
    """The exposition format of Prometheus; what is not known is left out."""
    run, last = found.run, found.run.training[-1] if found.run and found.run.training else {}
    lines: list[str] = []

    def add(name: str, words: str, *samples: Sample) -> None:
        lines.extend(_family(f"homerank_server_{name}", words, samples))

    def one(name: str, words: str, value: Any) -> None:
        add(name, words, ({}, value))

    if run is not None:
        one("round", "Newest committed training round.", last.get("round", 0))
        one("rounds_planned", "Training rounds of the run.", run.config.federation.rounds)
        one("run_finished", "1 once the run has compared and shipped.", run.outcome is not None)
        one("cohort", "Devices asked in the newest training round.", last.get("asked"))
        one("update_norm", "L2 norm of the newest combined update.", last.get("update_norm"))
        one("round_seconds", "How long the newest training round took.", last.get("seconds"))
        one("replies_accepted_total", "Replies that were taken in this run.", run.accepted)
        refused = [({"reason": code}, float(count)) for code, count in sorted(run.refused.items())]
        add("replies_refused_total", "Replies that were not, by reason.", *refused)
        unreleased = sum(not row.get("released", True) for row in run.rows)
        one("exchanges_below_quorum_total", "Exchanges with too few replies; nothing was released.", unreleased)
        add("epsilon", "Spent by this run on one unit, at worst.", *(({"unit": s.unit}, s.epsilon) for s in run.spent))
        add("epsilon_budget", "What this run may spend.", *(({"unit": s.unit}, s.budget) for s in run.spent))
        one("last_step_time_seconds", "When the run last moved, seconds UTC.", run.changed)
    one("devices_online", "Devices with a heartbeat that counts.", found.devices.online)
    one("devices_enrolled", "Devices that may take part.", found.devices.members)
    one("devices_revoked", "Devices that may not any more.", found.devices.revoked)
    one("release_version", "The release that devices are sent to.", found.latest.version if found.latest else 0)
    one("releases_bad", "Releases that do not verify.", sum(bool(release.problem) for release in found.releases))
    one("certificate_end_time_seconds", "When the server's certificate ends, seconds UTC.", found.certificate_ends)
    one("disk_free_bytes", "Free on the disk of the deployment folder.", found.free)
    return "\n".join(lines) + "\n"


def _family(name: str, words: str, samples: Sequence[Sample]) -> Iterable[str]:
    known = [(labels, float(value)) for labels, value in samples if value is not None]
    if not known:
        return
    yield f"# HELP {name} {words}"
    yield f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}"
    for labels, value in known:
        marks = ",".join(f'{key}="{_escaped(of)}"' for key, of in labels.items())
        yield f"{name}{{{marks}}} {value!r}" if marks else f"{name} {value!r}"


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
