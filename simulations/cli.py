"""`homerank-simulate`: federated simulations on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from shared.terminal import emit_json, run_cli
from simulations.cli_measure import Json, audit, benchmark_app

app = typer.Typer(
    help="Federated simulations on one machine: train privately over virtual devices, and rank.",
    no_args_is_help=True,
    add_completion=False,
)
data_app = typer.Typer(help="Look at behaviour data before using it.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(benchmark_app, name="benchmark")
app.command()(audit)

Source = Annotated[str | None, typer.Option(help="`world`, or a data folder (see docs/data.md).")]
Experiment = Annotated[str | None, typer.Option(help="A named experiment that ships with homerank, for example ml-1m.")]
ConfigFile = Annotated[Path | None, typer.Option(help="A configuration file (TOML).", metavar="FILE")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, section.key=value; may be repeated.", metavar="KEY=VALUE"),
]
Privacy = Annotated[str | None, typer.Option(help="What is protected: none, event, user or both.")]
Trust = Annotated[str | None, typer.Option(help="Whose noise it takes: aggregate or local.")]
Epsilon = Annotated[float | None, typer.Option(help="Budget of one unit over a device's life.")]
UserEpsilon = Annotated[float | None, typer.Option(help="With --privacy both: the budget at user level.")]
Delta = Annotated[float | None, typer.Option(help="Delta at which epsilon is stated.")]
Secure = Annotated[
    bool | None,
    typer.Option("--secure-aggregation/--no-secure-aggregation", help="Hide single replies from the server."),
]
Rounds = Annotated[int | None, typer.Option(help="Training rounds.")]
Cohort = Annotated[int | None, typer.Option(help="Planned devices per round.")]

#: Options that are settings, by their key in the configuration.
KEYS = {
    "data": "data.source",
    "split": "data.split",
    "min_item_count": "data.min_item_count",
    "privacy": "privacy.mode",
    "trust": "privacy.trust",
    "epsilon": "privacy.epsilon",
    "user_epsilon": "privacy.user_epsilon",
    "delta": "privacy.delta",
    "rounds": "federation.rounds",
    "cohort": "federation.cohort",
    "aggregation": "federation.aggregation",
    "engine": "federation.engine",
    "secure_aggregation": "federation.secure_aggregation",
    "chaos": "simulation.chaos",
    "seed": "seed",
}


def _given(context: typer.Context) -> dict[str, Any]:
    """The settings that this command line names, by key; the parameters of `run` and `plan` only declare them."""
    values = context.params.items()
    return {KEYS[name]: value for name, value in values if name in KEYS and value is not None}


@app.command()
def run(
    context: typer.Context,
    data: Source = None,
    experiment: Experiment = None,
    config: ConfigFile = None,
    setting: Settings = None,
    privacy: Privacy = None,
    trust: Trust = None,
    epsilon: Epsilon = None,
    user_epsilon: UserEpsilon = None,
    delta: Delta = None,
    secure_aggregation: Secure = None,
    rounds: Rounds = None,
    cohort: Cohort = None,
    aggregation: Annotated[str | None, typer.Option(help="alternate, ffa or fedit.")] = None,
    engine: Annotated[str | None, typer.Option(help="inline or ray.")] = None,
    split: Annotated[str | None, typer.Option(help="leave-one-out or temporal.")] = None,
    min_item_count: Annotated[int | None, typer.Option(help="Drop items with fewer interactions.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is random.")] = None,
    chaos: Annotated[float | None, typer.Option(help="Inject faults at random with this probability.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the run; a new one under runs/ unless given.", metavar="FOLDER"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Continue the run in this folder; takes no other setting.", metavar="FOLDER"),
    ] = None,
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Make the run folder and stop, to use it with `flwr run`.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train over virtual devices and rank their test items."""
    from simulations import session

    given = _given(context)
    if resume is not None:
        session.refuse_with_resume(given, others=[experiment, config, setting, out])
        result = session.continue_run(resume)
    else:
        settings = session.build_config(experiment=experiment, file=config, assignments=setting or [], options=given)
        result = session.new_run(settings, out, prepare_only=prepare_only)
    if as_json:
        emit_json(result)
    else:
        session.print_result(result)


@app.command()
def plan(
    context: typer.Context,
    data: Source = None,
    experiment: Experiment = None,
    config: ConfigFile = None,
    setting: Settings = None,
    privacy: Privacy = None,
    trust: Trust = None,
    epsilon: Epsilon = None,
    user_epsilon: UserEpsilon = None,
    delta: Delta = None,
    secure_aggregation: Secure = None,
    rounds: Rounds = None,
    cohort: Cohort = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="Price this training noise z instead of planning one.")
    ] = None,
    users: Annotated[int | None, typer.Option(min=1, help="Devices there will be, instead of reading data.")] = None,
    items: Annotated[int | None, typer.Option(min=1, help="Items there will be, instead of reading data.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a run would cost in privacy, noise and bytes, before anything runs."""
    from simulations import session

    given = _given(context)
    settings = session.build_config(experiment=experiment, file=config, assignments=setting or [], options=given)
    from simulations.planning import plan_run

    answer = plan_run(settings, users=users, items=items, multiplier=noise_multiplier)
    if as_json:
        emit_json(answer)
    else:
        session.print_plan(answer)


@data_app.command("check")
def check(
    path: Annotated[str, typer.Argument(help="A data folder, or `world`.")],
    as_json: Json = False,
) -> None:
    """Report what a data set at PATH holds, or where it is broken."""
    import dataclasses

    from shared.datasets import inspect
    from simulations.sources import open_source

    report = dataclasses.asdict(inspect(open_source(path)))
    if as_json:
        emit_json(report)
        return
    from simulations.console import data_table, terminal

    terminal().print(data_table(report))


@app.command()
def recommend(
    run_folder: Annotated[Path, typer.Option("--run", help="The folder of a finished run.", metavar="FOLDER")],
    user: Annotated[str, typer.Option(help="A user of that run.")],
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many items.")] = 10,
    as_json: Json = False,
) -> None:
    """Rank the catalogue for one user with the run's adapter: titles, scores, and the history it came from."""
    from simulations import session

    answer = session.recommend(run_folder, user=user, k=k)
    if as_json:
        emit_json(answer)
    else:
        session.print_recommendations(answer)


def main() -> NoReturn:
    """Entry point of the installed program."""
    run_cli(app, "homerank-simulate")
