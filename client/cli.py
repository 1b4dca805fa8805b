"""`homerank-client`: one person's device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from client import cli_data, cli_install, cli_service, cli_update
from client.cli_benchmark import benchmark
from client.cli_export import export_model
from client.cli_service import HOME, Home
from shared.terminal import emit_json, run_cli

app = typer.Typer(
    help="One person's device: learns and ranks here, and never sends behaviour.",
    no_args_is_help=True,
    add_completion=False,
)


app.command("export-model")(export_model)


@app.callback()
def _program() -> None:
    """One person's device: learns and ranks here, and never sends behaviour."""


cli_service.add_commands(app)
cli_data.add_commands(app)
cli_install.add_commands(app)
cli_update.add_commands(app)


@app.command()
def join(
    server: Annotated[
        str, typer.Argument(metavar="SERVER", help="https://HOST:PORT with --token, or an invitation.json.")
    ],
    home: Home = HOME,
    token: Annotated[
        str | None, typer.Option(help="The first time: the token of the server's operator; - reads it from stdin.")
    ] = None,
    profile: Annotated[str, typer.Option(help="Whose data on this device takes part.", metavar="NAME")] = "default",
    data: Annotated[
        Path | None,
        typer.Option(help="The first time: a data folder with this person's history.", metavar="FOLDER"),
    ] = None,
    user: Annotated[str | None, typer.Option(help="Whose history it is, when it holds several.")] = None,
    privacy: Annotated[
        str, typer.Option(help="event, user or both: refuse rounds that protect less; none: accept all.")
    ] = "event",
    trust: Annotated[
        str, typer.Option(help="aggregate: rely on noise in the sum; local: only on this device's own.")
    ] = "aggregate",
    epsilon: Annotated[float, typer.Option(min=0, help="This device's budget over its life.")] = 8.0,
    delta: Annotated[float, typer.Option(min=0, max=0.5, help="Delta at which epsilon is stated.")] = 1e-5,
    user_epsilon: Annotated[
        float, typer.Option(min=0, help="With --privacy both: the budget at user level; 0: the same.")
    ] = 0.0,
    secure: Annotated[
        bool, typer.Option("--secure-aggregation", help="Refuse rounds in which the server could see this reply.")
    ] = False,
    any_time: Annotated[
        bool, typer.Option("--any-time", help="Train on battery too, and while the machine is in use.")
    ] = False,
    keys_only: Annotated[
        bool,
        typer.Option("--keys-only", help="Make the device's keys, print the public key's path, and stop."),
    ] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the server.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Take part in training until Ctrl-C.

    The first time: SERVER is the server's address, --token what its operator gave out, --data this person's history.
    Later, SERVER is HOME/invitation.json, which the first time left there. Without tokens: join an invitation.json
    with --keys-only and have the operator register the public key. A service that already runs for this profile
    answers the rounds, within the limits it was started with; otherwise this command answers them.
    """
    from client.deployment import DeviceHome, Invitation, adopt_earlier_files, create_keys
    from client.deployment import join as take_part
    from client.door.gate import ANY_TIME, Policy
    from client.door.server import open_door
    from client.enrolment import enrol
    from client.portability import import_data
    from client.profile import Profile
    from client.service.owner import limits_of
    from shared.errors import DeploymentError

    device = DeviceHome.at(home)
    token = sys.stdin.readline().strip() if token == "-" else token  # arguments can be seen by others
    invited = Invitation.read(Path(server)) if token is None else enrol(server, token, device, timeout=timeout)
    facts = {"public_key": str(create_keys(device)), "server": invited.address, "joined": not keys_only}

    def report(message: str) -> None:
        if as_json:
            emit_json(facts)
        sys.stderr.write(message + "\n")

    if keys_only:
        report(f"public key to register: {facts['public_key']}")
        return
    person = Profile.open(device.folder, profile)
    limits = limits_of(
        person, mode=privacy, trust=trust, epsilon=epsilon, delta=delta, user_epsilon=user_epsilon, secure=secure
    )
    if profile == "default":
        adopt_earlier_files(device, person)
    if data is not None:
        count = import_data(person, data, user=user)
        sys.stderr.write(f"imported {count} events; they stay in {person.events}\n")
    elif not (person.events.exists() and person.catalogue.exists()):
        raise DeploymentError(f"{home}: found no history; join with --data FOLDER the first time")
    with open_door(person, limits=limits, policy=ANY_TIME if any_time else Policy()) as (socket, own):
        answering = "" if own else "; the service that already runs answers, within its own limits"
        take_part(
            device,
            invited,
            node_config={"socket": str(socket)},
            timeout=timeout,
            on_ready=lambda: report(f"joined {invited.address}{answering}; leave with Ctrl-C"),
        )


app.command()(benchmark)


def main() -> NoReturn:
    """Entry point of the installed program."""
    run_cli(app, "homerank-client")
