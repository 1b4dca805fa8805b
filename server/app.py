"""The Flower ServerApp: runs the experiment whose folder the run configuration (`out`) or $HOMERANK_RUN names."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.journal import JOURNAL, Journal, watcher
from server.ledger import ServerLedger
from server.rounds import STOP
from server.strategy import Strategy
from shared.artifacts import load_catalogue
from shared.config import load_config
from shared.errors import RunError
from shared.protocol import Manifest

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
    config = load_config(path / "config.toml")
    with alone_in(path) if deployment else nullcontext():
        ledger = ServerLedger(place, durable=deployment, witness=place.with_suffix(".witness"))
        steps: list[Callable[[str, Manifest], None]] = []
        if deployment:
            journal = Journal(place.parent / JOURNAL, echo=sys.stderr)
            steps.append(watcher(journal, folder=path, ledger=ledger, rounds=config.federation.rounds))
        steps.append(stop_when_asked(path))  # last: it may end the run

        def on_step(step: str, manifest: Manifest) -> None:
            for told in steps:
                told(step, manifest)

        strategy = Strategy(
            config,
            load_catalogue(path / "items.jsonl"),
            folder=path,
            ledger=ledger,
            deployment=deployment,
            on_step=on_step,
        )
        strategy.run(grid)


@contextmanager
def alone_in(folder: Path, *, patience: float = 60.0) -> Iterator[None]:
    """Hold an experiment's folder, since two ServerApps would write one checkpoint. RunError after `patience` s."""
    import fcntl

    deadline = time.monotonic() + patience
    with (folder / "serverapp.lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise RunError(f"{folder}: found another ServerApp at work there; end it first") from None
                time.sleep(0.5)
        yield


def stop_when_asked(folder: Path) -> Callable[[str, Manifest], None]:
    """Ends the run between two rounds, when a file named `stop` lies in its folder and the round is on disk."""

    def look(step: str, manifest: Manifest) -> None:
        if step == "recorded" and (folder / STOP).exists():
            raise RunError(f"stopped as asked, after {manifest.phase} round {manifest.round}; it can be resumed")

    return look
