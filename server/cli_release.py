"""Commands of the server's operator about releases and operations: publish, list them, and watch the server."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli_options import AsJson, Folder
from shared.terminal import emit_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.publishing import Published


def add_commands(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (publish, releases, dashboard):
        app.command()(command)


def publish(
    folder: Folder,
    run: Annotated[Path, typer.Option(help="The folder of the finished run.", metavar="RUN")],
    name: Annotated[str, typer.Option(help="What people see; `release N` unless given.")] = "",
    url: Annotated[
        str, typer.Option(help="Where devices fetch releases, https://...; kept in DIR/publisher.json.")
    ] = "",
    simulation: Annotated[
        bool, typer.Option("--simulation", help="Release the adapter of a simulation, whose ledger is its own.")
    ] = False,
    version: Annotated[
        int, typer.Option(min=0, help="Its number, higher than the newest; for releases that were lost. 0: the next.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Sign the adapter of a run and make it the newest release that devices fetch.

    The first time makes the signing key, DIR/release.key. Hand DIR/publisher.json to devices: they pin it.
    """
    from server.provenance import read_privacy
    from server.publishing import PUBLISHER
    from server.publishing import publish as sign_and_write

    release, new = sign_and_write(folder, run, name=name, simulation=simulation, url=url, version=version)
    privacy = read_privacy(run / "adapter")
    facts: dict[str, Any] = {
        "version": release.version,
        "new": new,
        "name": release.name,
        "bytes": release.size,
        "key": release.key,
    }
    if as_json:
        facts |= {"mode": privacy["mode"], "epsilon": _epsilons(privacy)}
        emit_json({**facts, "folder": str(folder / "releases" / str(release.version))})
        return
    what = "published" if new else "was published before:"
    sys.stdout.write(f"{what} release {release.version}, {release.size:,} bytes, signed by key {release.key}\n")
    sys.stdout.write(f"devices pin {folder / PUBLISHER} and fetch {folder / 'releases'} over HTTPS\n")
    sys.stdout.write(privacy["statement"] + "\n")


def releases(folder: Folder, as_json: AsJson = False) -> None:
    """List the releases of DIR, each checked as a device would. Exit code 1 when one does not verify."""
    from server.publishing import published

    found = published(folder)
    if as_json:
        emit_json({"releases": [_row(one) for one in found]})
    else:
        for one in found:
            sys.stdout.write(_line(one) + "\n")
        if not found:
            sys.stdout.write("no releases yet\n")
    if any(one.problem for one in found):
        raise typer.Exit(1)


def dashboard(
    folder: Folder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 8790,
    run: Annotated[
        Path | None, typer.Option(help="The run to show; the newest of DIR unless given.", metavar="RUN")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show rounds, cohorts, refusals, updates, epsilon, adapters and devices on a page of this machine until Ctrl-C.

    Figures for Prometheus are at /metrics of the same port and need no token.
    """
    from server.dashboard import serve
    from shared.loopback import bound

    def ready(link: str) -> None:
        if as_json:
            emit_json({"page": link, "metrics": link.partition("?")[0] + "metrics"})
        sys.stderr.write(f"the dashboard: {link}\nleave with Ctrl-C\n")

    with bound(port) as listener:
        serve(folder, listener, run=run, ready=ready)


def _row(one: Published) -> dict[str, Any]:
    """A release for `--json`."""
    row: dict[str, Any] = {"version": one.version, "latest": one.latest, "problem": one.problem}
    if one.release is not None:
        row |= {name: getattr(one.release, name) for name in ("name", "created", "run", "round", "origin", "key")}
        row["bytes"] = one.release.size
        row |= {"mode": one.privacy.get("mode"), "epsilon": _epsilons(one.privacy)}
    return row


def _line(one: Published) -> str:
    if one.release is None:
        return f"{one.version:>5}  BAD  {one.problem}"
    when = datetime.fromtimestamp(one.release.created, UTC).strftime("%Y-%m-%d %H:%M")
    spent = ", ".join(f"ε {value:.2f} per {unit}" for unit, value in _epsilons(one.privacy).items()) or "no privacy"
    marks = " (simulation)" * (one.release.origin == "simulation") + "  <- latest" * one.latest
    return f"{one.version:>5}  {when} UTC  {one.release.size:>12,} bytes  {spent}  {one.release.name}{marks}"


def _epsilons(privacy: Mapping[str, Any]) -> dict[str, float]:
    return {unit: layer["epsilon"] for unit, layer in privacy.get("layers", {}).items()}
