"""`homerank-server`: start the aggregation server, let devices in, run rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from server import cli_care, cli_devices, cli_release, cli_rounds
from server.cli_options import AsJson, CatalogueFile, ConfigFile, Devices, Folder, Out, Settings, note, planned
from shared.terminal import emit_json, run_cli

app = typer.Typer(
    help="The aggregation server. It sees updates, never events.",
    no_args_is_help=True,
    add_completion=False,
)


@app.callback()
def _program() -> None:
    """The aggregation server. It sees updates, never events."""


cli_care.add_commands(app)
cli_devices.add_commands(app)
cli_release.add_commands(app)
cli_rounds.add_commands(app)


@app.command()
def start(
    folder: Folder,
    port: Annotated[
        int,
        typer.Option(min=0, max=65535, help="Port that devices connect to; 0 keeps the last one."),
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Start the server on this machine and keep it running until Ctrl-C.

    The first start makes DIR as `init` does. With nginx installed, devices reach it through one public port and enrol
    with a token (`enroll`); without, only devices of this machine can join, with DIR/invitation.json and `register`.
    """
    import os
    from time import sleep

    from server.running import running_server
    from shared.errors import DeploymentError

    os.umask(0o077)  # what Flower and nginx write is nobody else's either
    with running_server(folder, port=port, warn=note) as server:
        deployment = server.deployment
        if as_json:
            facts = {"address": deployment.public, "proxied": bool(deployment.door)}
            emit_json({**facts, "invitation": str(deployment.invitation)})
        how = f"enrol devices with: homerank-server enroll {folder}" if deployment.door else "register devices by hand"
        note(f"ready at {deployment.public}; {how}; invitation: {deployment.invitation}")
        while (ended := server.ended) is None:
            sleep(0.5)
        raise DeploymentError(f"the server ({ended.log.stem}) ended; end of {ended.log}:\n{ended.tail()}")


@app.command()
def register(
    folder: Folder,
    public_key: Annotated[Path, typer.Argument(metavar="KEY.pub", help="The device's public key.")],
    as_json: AsJson = False,
) -> None:
    """Let the device with this public key join. The server must be running."""
    from server.runs import register as register_key

    node_id = register_key(folder, public_key)
    if as_json:
        emit_json({"node_id": node_id, "public_key": str(public_key)})
    else:
        note(f"registered {public_key} as node {node_id}")


@app.command()
def run(
    folder: Folder,
    catalogue: CatalogueFile,
    rounds: Annotated[int | None, typer.Option(min=1, help="How many rounds to run.")] = None,
    devices: Devices = 1,
    config: ConfigFile = None,
    setting: Settings = None,
    out: Out = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds the whole run may take.")] = 24 * 3600.0,
    as_json: AsJson = False,
) -> None:
    """Run rounds of training with the devices that have joined, ship the adapter to them, and wait for the end.

    Without a configuration, rounds are private (event, aggregate, epsilon 8 at delta 1e-5). A run that was
    interrupted goes on when it is given the same folder and settings.
    """
    from server.deployment import Deployment
    from server.rounds import run_settings
    from server.runs import prepare_run, run_rounds

    Deployment.at(folder)  # nothing is written for a deployment that is not there

    # Absolute, because the ServerApp runs in the deployment folder.
    target = (out or folder / "run").expanduser().resolve()
    assignments = planned(setting, rounds=rounds, devices=devices)
    prepare_run(target, catalogue=catalogue, config=config, assignments=assignments)
    run_id = run_rounds(folder, run_config=run_settings(Deployment.at(folder), target), timeout=timeout, on_line=note)
    if as_json:
        emit_json({"run_id": str(run_id), "out": str(target), "adapter": str(target / "adapter")})
    else:
        note(f"run {run_id} completed; adapter in {target / 'adapter'}")


def main() -> NoReturn:
    """Entry point of the installed program."""
    run_cli(app, "homerank-server")
