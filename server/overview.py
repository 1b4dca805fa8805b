"""What an operator asks first: what runs, who is there, how far the rounds are, what has been spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server.deployment import Deployment
from server.doctor import certificate_ends, loop_runs
from server.fleet import Fleet
from server.ledger import ServerLedger
from server.registry import Registry
from server.rounds import Experiment, progress
from server.running import public_answers
from server.settings import read_settings
from shared.errors import HomerankError
from shared.privacy.statement import privacy_facts
from shared.version import version


def overview(folder: Path) -> dict[str, Any]:
    """The state of a deployment as one object. A part that cannot be read says why in its place."""
    deployment = Deployment.at(folder)
    running = deployment.answers()
    public = bool(deployment.door) and running and public_answers(deployment, read_settings(deployment.folder))
    days = (certificate_ends(deployment) - datetime.now(UTC)).days
    return {
        "version": version(),
        "address": deployment.public,
        "server": {"running": running, "public": public},
        "devices": _or_why(lambda: _devices(deployment, running=running)),
        "rounds": _or_why(lambda: _rounds(deployment)),
        "ledger": _or_why(lambda: _ledger(deployment)),
        "certificate": {"days_left": days},
    }


def spent_by_run(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each run of a ledger: what it released by phase, and the epsilon of each unit at its delta."""
    found = []
    for run in dict.fromkeys(entry["run"] for entry in entries):
        phases = Counter(str(e["phase"]) for e in entries if e["run"] == run and e["kind"] == "release")
        facts = privacy_facts(entries, run=run)
        epsilon = {unit: layer["epsilon"] for unit, layer in facts.get("layers", {}).items()}
        found.append({"run": run, "released": dict(phases), "epsilon": epsilon, "delta": facts.get("delta", 0.0)})
    return found


def _or_why(ask: Any) -> Any:
    try:
        return ask()
    except HomerankError as error:
        return {"error": str(error)}


def _devices(deployment: Deployment, *, running: bool) -> dict[str, int]:
    with closing(Registry(deployment.registry)) as registry:
        known, tokens = registry.devices(), registry.open_tokens()
    online = 0
    if running:
        with Fleet(deployment) as fleet:
            online = sum(node.status == "online" for node in fleet.nodes())
    revoked = sum(device.revoked is not None for device in known)
    return {"enrolled": len(known) - revoked, "revoked": revoked, "online": online, "open_tokens": tokens}


def _rounds(deployment: Deployment) -> dict[str, Any]:
    experiment = Experiment.of(deployment)
    if experiment is None:
        return {"state": "none"}
    return {**progress(experiment), "kept_going": loop_runs(deployment)}


def _ledger(deployment: Deployment) -> dict[str, Any]:
    with closing(ServerLedger(deployment.ledger, witness=deployment.ledger.with_suffix(".witness"))) as ledger:
        head = ledger.head()
        return {"rows": head.seq, "head": head.hash, "runs": len(ledger.runs())}
