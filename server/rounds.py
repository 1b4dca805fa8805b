"""Rounds that go on: an experiment of several Flower runs, one after another, until it is finished.

Flower ends a run for good when a process of it is killed. The experiment's own state is elsewhere: checkpoint, ledger
and settings lie in its folder and are written before anything depends on them. So whatever was killed, another run on
the same folder continues at the last committed round. Which experiment that is, and whether it is wanted, is written
to `rounds.json` in the deployment folder before the first run begins.

| killed | what goes on |
|---|---|
| the ServerApp | the loop starts another run |
| the SuperLink, nginx or `start` | the loop waits until the server answers again, then starts another run |
| the loop itself (`rounds start`) | the run goes on; `rounds resume` follows it to its end, or starts another |
| the machine | `rounds resume` starts another run |
| a device | the round goes on without it; that is the strategy's business |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic, sleep

from server.certificates import replace_file
from server.checkpoint import whole_rows
from server.deployment import Deployment
from server.runs import RunValue, end_server_apps, run_rounds, stop_run, unfinished_run, wait_for_run
from shared.errors import ConfigError, DeploymentError

FILE, LOCK = "rounds.json", "rounds.lock"
#: In an experiment's folder: the ServerApp ends after the round in which it finds this file.
STOP = "stop"
#: Runs in a row that may end without a released round before the loop gives up.
ATTEMPTS = 3
#: Seconds between two looks at a server or a run that is waited for.
PAUSE = 2.0


@dataclass(frozen=True)
class Experiment:
    """What rounds.json says. state: running, stopped or finished. run: Flower's id of the newest run, "" before."""

    folder: str
    state: str
    run: str = ""

    @classmethod
    def of(cls, deployment: Deployment) -> Experiment | None:
        """The experiment of a deployment, None before the first. DeploymentError when the file is damaged."""
        path = deployment.folder / FILE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise DeploymentError(
                f"{path}: found no experiment ({error}); remove it and start the rounds again"
            ) from None

    def keep(self, deployment: Deployment) -> Experiment:
        """Write it down."""
        replace_file(deployment.folder / FILE, json.dumps(asdict(self)).encode(), mode=0o600)
        return self


@dataclass(frozen=True)
class Loop:
    """How to keep rounds going. patience: seconds to wait for a server that does not answer. timeout: for all rounds.

    on_line: told what happens, a line at a time.
    """

    patience: float = 600.0
    timeout: float = 30 * 24 * 3600.0
    on_line: Callable[[str], None] = lambda line: None
    components: tuple[str, str] = ("server.app:app", "client.app:app")

    def run(self, deployment: Deployment, experiment: Experiment) -> Experiment:
        """Run an experiment to its end, or until it is stopped; returns what rounds.json says then.

        DeploymentError when another loop works on this deployment, when the server stays away, and when `ATTEMPTS`
        runs in a row end without releasing a round; then the message carries the last reason.
        """
        with _only_loop(deployment):
            (Path(experiment.folder) / STOP).unlink(missing_ok=True)
            experiment = replace(experiment, state="running").keep(deployment)
            failures, deadline = 0, monotonic() + self.timeout
            while experiment.state == "running":
                before = released_rows(experiment)
                try:
                    self._await_server(deployment)
                    self._one_run(deployment, experiment, deadline - monotonic())
                except DeploymentError as error:
                    experiment = _current(deployment, experiment)
                    if experiment.state != "running":
                        break
                    failures = 0 if released_rows(experiment) > before else failures + 1
                    if failures >= ATTEMPTS or monotonic() > deadline or isinstance(error, ServerAway):
                        raise
                    self.on_line(f"the run ended early; going on at the last committed round ({_first_line(error)})")
                    sleep(PAUSE)
                else:
                    experiment = replace(_current(deployment, experiment), state="finished").keep(deployment)
            return experiment

    def _await_server(self, deployment: Deployment) -> None:
        """Wait for a server that is being started again."""
        deadline, told = monotonic() + self.patience, False
        while not deployment.answers():
            experiment = Experiment.of(deployment)
            if experiment is None or experiment.state != "running":
                raise DeploymentError("the rounds were stopped")
            if monotonic() > deadline:
                raise ServerAway(
                    f"no server answered at {deployment.address} for {self.patience:.0f} s; start it with:"
                    f" homerank-server start {deployment.folder}, then: homerank-server rounds resume"
                    f" {deployment.folder}"
                )
            if not told:
                self.on_line(f"waiting for the server at {deployment.address}")
            told = True
            sleep(PAUSE)

    def _one_run(self, deployment: Deployment, experiment: Experiment, seconds: float) -> None:
        """Follow the run that goes on in Flower, or start one. DeploymentError when it does not complete."""
        going, mine = unfinished_run(deployment), _current(deployment, experiment).run
        if going:
            self.on_line(f"following run {going}, which goes on")
            wait_for_run(deployment, going, timeout=seconds, pause=PAUSE)
            if going == mine:
                return  # otherwise it may have been of another folder; what is finished is not done twice
        end_server_apps(deployment)  # of a SuperLink that was killed: nobody would hear it, but it holds the folder
        run_rounds(
            deployment.folder,
            run_config=run_settings(deployment, Path(experiment.folder)),
            components=self.components,
            timeout=seconds,
            on_line=self.on_line,
            on_start=lambda run: _note_run(deployment, run),
        )


class ServerAway(DeploymentError):
    """A server that did not come back in time."""


def stop_rounds(deployment: Deployment, *, now: bool) -> Experiment:
    """Ask the loop to end, after the round that is going on, or `now`: then that round's replies are lost.

    Raises DeploymentError when there is no experiment. Returns at once; the checkpoint is good in either case.
    """
    experiment = Experiment.of(deployment)
    if experiment is None:
        raise DeploymentError(f"{deployment.folder}: found no rounds to stop")
    if experiment.state != "running":
        return experiment
    (Path(experiment.folder) / STOP).touch()
    experiment = replace(experiment, state="stopped").keep(deployment)
    if now and deployment.answers() and (going := unfinished_run(deployment)):
        stop_run(deployment, int(going))
    return experiment


def run_settings(deployment: Deployment, folder: Path) -> dict[str, RunValue]:
    """What the ServerApp is told: the folder of the experiment, and the ledger of the deployment."""
    return {"out": str(folder), "deployment": True, "ledger": str(deployment.ledger)}


def released_rows(experiment: Experiment) -> int:
    """How many exchanges of an experiment were released; grows while it gets on."""
    return sum(bool(row.get("released")) for row in whole_rows(Path(experiment.folder) / "metrics.jsonl"))


def progress(experiment: Experiment) -> dict[str, object]:
    """Where an experiment stands, from its folder: state, last row, planned rounds, result."""
    from shared.config import load_config

    folder = Path(experiment.folder)
    rows = whole_rows(folder / "metrics.jsonl")
    done = max((int(row["round"]) for row in rows if row.get("phase") == "train"), default=0)
    try:
        planned = load_config(folder / "config.toml").federation.rounds
    except ConfigError as error:
        raise DeploymentError(f"{folder}: found no settings of the experiment ({error})") from None
    last = {key: rows[-1][key] for key in ("phase", "accepted", "refused") if key in rows[-1]} if rows else {}
    shipped = str(folder / "adapter") if (folder / "adapter").exists() else None
    return {**asdict(experiment), "round": done, "rounds": planned, "last": last, "adapter": shipped}


@contextmanager
def _only_loop(deployment: Deployment) -> Iterator[None]:
    import fcntl

    with (deployment.folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DeploymentError(
                f"rounds of {deployment.folder} are in progress; see homerank-server status"
            ) from error
        yield


def _current(deployment: Deployment, experiment: Experiment) -> Experiment:
    """What `rounds stop` may have written meanwhile."""
    return Experiment.of(deployment) or experiment


def _note_run(deployment: Deployment, run: int) -> None:
    experiment = Experiment.of(deployment)
    if experiment is not None:
        replace(experiment, run=str(run)).keep(deployment)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
