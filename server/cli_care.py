"""Commands about the deployment itself: make it, renew its certificate, look after it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from shared.terminal import emit_json

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The deployment folder.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def add_commands(app: typer.Typer) -> None:
    """Give the program these commands."""
    for command in (init, renew):
        app.command()(command)


def init(
    folder: Folder,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="Host name or IP address of the server; may be repeated.", metavar="HOST"),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The public port; 8443 with --name, else any free one.")
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(help="Address the public port is opened on; 0.0.0.0 with --name, else 127.0.0.1.", metavar="IP"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a deployment folder: authority, certificate, settings, ledger, registry. Nothing is started.

    The first --name is the one that devices are told. Run it again with other names or ports to change those; the
    authority, the devices and the ledger stay. Without --name the server is for this machine only.
    """
    from server.deployment import Deployment, initialise
    from server.settings import FILE, ServerSettings, read_settings
    from shared.errors import DeploymentError

    place = folder.expanduser().resolve()
    if (place / "server.json").exists() and Deployment.at(place).answers():
        raise DeploymentError(f"a server of {place} is running; stop it, then run init again")
    settings = None
    if name or port or listen or not (place / FILE).exists():
        before = read_settings(place)
        names = tuple(dict.fromkeys(name)) if name else before.names
        settings = ServerSettings(
            names=names,
            listen=listen or ("0.0.0.0" if name else before.listen),
            port=port or before.port or (8443 if names else 0),
            proxy=before.proxy,
            enrolments=before.enrolments,
        )
    deployment = initialise(place, settings)
    used = read_settings(place)
    if as_json:
        emit_json(
            {
                "folder": str(place),
                "address": deployment.public,
                "names": list(used.names),
                "listen": used.listen,
                "ca": str(deployment.ca),
            }
        )
    else:
        _note(
            f"{place} is ready; devices will reach it at {deployment.public}. Start it: homerank-server start {folder}"
        )


def renew(folder: Folder, as_json: Json = False) -> None:
    """Issue a new server certificate under the same authority. Devices notice nothing and need not enrol again.

    A running nginx takes it at once; the SuperLink behind it at its next start, which must come before the old
    certificate ends.
    """
    from server.certificates import create_certificates
    from server.deployment import Deployment
    from server.proxy import reload_proxy
    from server.settings import read_settings

    deployment = Deployment.at(folder)
    issued = create_certificates(deployment.folder, names=read_settings(deployment.folder).names, renew=True)
    reloaded = reload_proxy(deployment)
    until = issued.not_valid_after_utc.isoformat(timespec="seconds")
    if as_json:
        emit_json({"valid_until": until, "reloaded": reloaded})
    else:
        _note(f"the server's certificate is valid until {until}" + (" and in use" if reloaded else ""))


def _note(line: str) -> None:
    """Remarks go to stderr; stdout is for results."""
    sys.stderr.write(line + "\n")
