"""Commands about rounds: start, stop and resume an experiment that survives whatever is killed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from server.cli_options import AsJson, CatalogueFile, ConfigFile, Devices, Folder, Out, Settings, note, planned
from shared.terminal import emit_json

if TYPE_CHECKING:
    from server.deployment import Deployment
    from server.rounds import Experiment

Patience = Annotated[float, typer.Option(min=1, help="Seconds to wait for a server that does not answer.")]

rounds = typer.Typer(
    help="Rounds of training that go on whatever process is killed.", no_args_is_help=True, add_completion=False
)


def add_commands(app: typer.Typer) -> None:
    """Give the program these commands."""
    app.add_typer(rounds, name="rounds")


@rounds.command()
def start(
    folder: Folder,
    catalogue: CatalogueFile,
    count: Annotated[int | None, typer.Option("--rounds", min=1, help="How many rounds to run.")] = None,
    devices: Devices = 1,
    config: ConfigFile = None,
    setting: Settings = None,
    out: Out = None,
    patience: Patience = 600.0,
    as_json: AsJson = False,
) -> None:
    """Begin an experiment and stay with it to its end. Ctrl-C stops it now; `rounds resume` continues it.

    Without a configuration, rounds are private (event, aggregate, epsilon 8 at delta 1e-5).
    """
    from server.deployment import Deployment
    from server.rounds import Experiment
    from server.runs import prepare_run
    from shared.errors import DeploymentError

    deployment = Deployment.at(folder)
    target = (out or folder / "run").expanduser().resolve()
    known = Experiment.of(deployment)
    if known and known.state != "finished" and known.folder != str(target):
        raise DeploymentError(
            f"found unfinished rounds in {known.folder}; finish them with `homerank-server rounds resume`, or give"
            f" --out {known.folder}"
        )
    assignments = planned(setting, rounds=count, devices=devices)
    prepare_run(target, catalogue=catalogue, config=config, assignments=assignments)
    _go_on(deployment, Experiment(str(target), "running").keep(deployment), patience, as_json)


@rounds.command()
def resume(folder: Folder, patience: Patience = 600.0, as_json: AsJson = False) -> None:
    """Continue the experiment after anything was stopped or killed. One that is finished is left alone."""
    from server.deployment import Deployment
    from server.rounds import Experiment
    from shared.errors import DeploymentError

    deployment = Deployment.at(folder)
    experiment = Experiment.of(deployment)
    if experiment is None:
        raise DeploymentError(f"{deployment.folder}: found no rounds; begin with `homerank-server rounds start`")
    if experiment.state == "finished":
        _report(experiment, as_json)
        return
    _go_on(deployment, experiment, patience, as_json)


@rounds.command()
def stop(
    folder: Folder,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for the round to end; its replies are lost.")] = False,
    as_json: AsJson = False,
) -> None:
    """End the experiment after the round that is going on; `rounds resume` continues it."""
    from server.deployment import Deployment
    from server.rounds import stop_rounds

    _report(stop_rounds(Deployment.at(folder), now=now), as_json)


def _go_on(deployment: Deployment, experiment: Experiment, patience: float, as_json: bool) -> None:
    """Run the loop; an interruption ends the run too and leaves an experiment that can be resumed."""
    from server.rounds import Loop, stop_rounds

    try:
        experiment = Loop(patience=patience, on_line=note).run(deployment, experiment)
    except (KeyboardInterrupt, SystemExit):
        stop_rounds(deployment, now=True)
        raise
    _report(experiment, as_json)


def _report(experiment: Experiment, as_json: bool) -> None:
    from server.rounds import progress

    facts = progress(experiment)
    if as_json:
        emit_json(facts)
    else:
        note(f"{facts['state']} after {facts['round']} of {facts['rounds']} rounds; {experiment.folder}")
