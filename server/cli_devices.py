"""Commands about devices: let them in, list them, shut them out."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from server.cli_options import AsJson, Folder, note
from shared.terminal import emit_json


def add_commands(app: typer.Typer) -> None:
    """Give the program these commands."""
    for command in (enroll, devices, revoke):
        app.command()(command)


def enroll(
    folder: Folder,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="How many tokens.")] = 1,
    valid: Annotated[float, typer.Option(min=0.01, max=24 * 90, help="Hours until an unused token ends.")] = 72.0,
    as_json: AsJson = False,
) -> None:
    """Print tokens, each of which lets one device in, once. The server need not run.

    A token holds a secret: hand it over in private. On the device: homerank-client join URL --token TOKEN.
    """
    from server.deployment import Deployment
    from server.registry import Registry
    from shared.enrolment import Ticket, fingerprint_of
    from shared.errors import DeploymentError

    deployment = Deployment.at(folder)
    if not deployment.door:
        raise DeploymentError(
            f"{deployment.folder} was last started without nginx, so devices cannot enrol; install nginx (Debian:"
            " apt-get install nginx-light) and start it again, or use `homerank-server register`"
        )
    fingerprint = fingerprint_of(deployment.ca.read_text())
    registry = Registry(deployment.registry)
    try:
        secrets = registry.issue(count, hours=valid)
    finally:
        registry.close()
    tokens = [Ticket(deployment.public, fingerprint, secret).token() for secret in secrets]
    if as_json:
        emit_json({"url": f"https://{deployment.public}", "tokens": tokens, "valid_hours": valid})
        return
    sys.stdout.write("".join(f"{token}\n" for token in tokens))
    note(f"on the device: homerank-client join https://{deployment.public} --token TOKEN   (within {valid:g} hours)")


def devices(folder: Folder, as_json: AsJson = False) -> None:
    """List devices: number, node id, state, since when. Online or offline is known while the server runs."""
    from server.deployment import Deployment
    from server.fleet import Fleet
    from server.registry import Registry

    deployment = Deployment.at(folder)
    registry = Registry(deployment.registry)
    try:
        enrolled, tokens = registry.devices(), registry.open_tokens()
    finally:
        registry.close()
    states = {}
    if deployment.answers():
        with Fleet(deployment) as fleet:
            states = {node.node: node.status for node in fleet.nodes()}
    rows = [
        {
            "number": device.number,
            "node_id": device.node,
            "state": "revoked" if device.revoked is not None else states.get(device.node, "unknown"),
            "enrolled": _when(device.enrolled),
            "revoked": None if device.revoked is None else _when(device.revoked),
            "public_key": device.key,
        }
        for device in enrolled
    ]
    if as_json:
        emit_json({"devices": rows, "open_tokens": tokens})
        return
    for row in rows:
        sys.stdout.write(f"{row['number']:>6}  {row['node_id'] or '-':>20}  {row['state']:<12}  {row['enrolled']}\n")
    note(f"{len(rows)} devices, {tokens} tokens not yet redeemed")


def revoke(
    folder: Folder,
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="Its number or node id, as `devices` lists them.")],
    as_json: AsJson = False,
) -> None:
    """Shut a device out, at once and for ever: its next request is refused, its key is never taken again.

    The server must be running. What the device contributed to earlier rounds stays in the adapter.
    """
    from server.deployment import reachable
    from server.fleet import Fleet
    from server.registry import Registry

    deployment = reachable(folder)
    registry = Registry(deployment.registry)
    try:
        found = registry.find(device)
        registry.revoke(found.number)  # first here: if Flower fails now, asking again finishes it
        with Fleet(deployment) as fleet:
            node = found.node or next((known.node for known in fleet.nodes() if known.key == found.key), "")
            if node:
                fleet.unregister(node)
    finally:
        registry.close()
    if as_json:
        emit_json({"number": found.number, "node_id": node, "revoked": True})
    else:
        note(f"device {found.number} (node {node or 'none'}) is shut out")


def _when(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
