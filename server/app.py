"""The Flower ServerApp: runs the experiment whose folder the run configuration (`out`) or $HOMERANK_RUN names."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.journal import JOURNAL, Journal, watcher
from server.ledger import ServerLedger
from server.strategy import Strategy
from shared.artifacts import load_catalogue
from shared.config import load_config
from shared.errors import RunError

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run or continue the experiment to its end."""
    folder = str(context.run_config.get("out") or os.environ.get("HOMERANK_RUN", ""))
    if not folder:
        raise RunError(
            "found no run folder; make one with `homerank-simulate run --prepare-only --out FOLDER` and pass"
            " --run-config 'out=\"FOLDER\"'"
        )
    path = Path(folder)
    deployment = bool(context.run_config.get("deployment", False))
    place = Path(str(context.run_config.get("ledger") or path / "server-ledger.sqlite"))
    ledger = ServerLedger(place, durable=deployment, witness=place.with_suffix(".witness"))
    config = load_config(path / "config.toml")
    journal = Journal(place.parent / JOURNAL, echo=sys.stderr)
    watching = {"on_step": watcher(journal, folder=path, ledger=ledger, rounds=config.federation.rounds)}
    strategy = Strategy(
        config,
        load_catalogue(path / "items.jsonl"),
        folder=path,
        ledger=ledger,
        deployment=deployment,
        **(watching if deployment else {}),
    )
    strategy.run(grid)
