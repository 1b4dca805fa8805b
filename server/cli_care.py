"""Commands about the deployment itself: make it, renew its certificate, look after it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from server.cli_options import AsJson, Folder, note
from shared.terminal import emit_json

ledger = typer.Typer(help="What was ever released, and whether its record is whole.", no_args_is_help=True)


def add_commands(app: typer.Typer) -> None:
    """Give the program these commands."""
    for command in (init, renew, status, doctor, backup, restore):
        app.command()(command)
    app.add_typer(ledger, name="ledger")


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
    as_json: AsJson = False,
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
        note(
            f"{place} is ready; devices will reach it at {deployment.public}. Start it: homerank-server start {folder}"
        )


def renew(folder: Folder, as_json: AsJson = False) -> None:
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
        note(f"the server's certificate is valid until {until}" + (" and in use" if reloaded else ""))


def status(folder: Folder, as_json: AsJson = False) -> None:
    """What runs and where it stands: processes, devices, rounds, ledger, certificate. Reads only."""
    from server.overview import overview

    facts = overview(folder)
    if as_json:
        emit_json(facts)
        return
    for name, value in facts.items():
        text = ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, dict) else str(value)
        sys.stdout.write(f"{name:<12} {text}\n")


def doctor(folder: Folder, as_json: AsJson = False) -> None:
    """Look for whatever is not in order, and say what to do. Exit code 1 when something fails."""
    from server.deployment import Deployment
    from server.doctor import FAIL, examine

    findings = examine(Deployment.at(folder))
    failed = any(finding.state == FAIL for finding in findings)
    if as_json:
        emit_json({"ok": not failed, "findings": [finding.__dict__ for finding in findings]})
    else:
        for finding in findings:
            sys.stdout.write(f"{finding.state:<5} {finding.name:<12} {finding.detail}\n")
    if failed:
        raise typer.Exit(1)


def backup(
    folder: Folder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; it holds secret keys.")],
    as_json: AsJson = False,
) -> None:
    """Write everything that cannot be made anew into one file; the server may run.

    Keys, settings, devices, ledger with witness, Flower's state, releases, and the experiment of `rounds`.
    """
    from server.backup import back_up
    from server.deployment import Deployment

    contents = back_up(Deployment.at(folder), file)
    if as_json:
        emit_json({"file": str(file), "files": len(contents.files), "ledger_rows": contents.rows})
    else:
        note(f"{file}: {len(contents.files)} files, {contents.rows} ledger rows. It holds secret keys: keep it safe")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `backup` wrote.")],
    folder: Folder,
    keep_ledger: Annotated[
        bool, typer.Option("--keep-ledger", help="Keep the ledger that is in DIR, which may know more releases.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup in place of DIR; what was there is set aside under another name.

    Refused when DIR knows releases that the backup's ledger does not: they would no longer be counted.
    """
    from server.backup import restore as put_back

    contents = put_back(file, folder, keep_ledger=keep_ledger)
    if as_json:
        emit_json({"folder": str(folder), "files": len(contents.files), "ledger_rows": contents.rows})
    else:
        note(f"{folder}: {len(contents.files)} files restored. Look at it: homerank-server doctor {folder}")


@ledger.command("show")
def ledger_show(folder: Folder, as_json: AsJson = False) -> None:
    """Every run and what it released, oldest first, with the epsilon that each unit has spent in it."""
    from contextlib import closing

    from server.deployment import Deployment
    from server.ledger import ServerLedger
    from server.overview import spent_by_run

    path = Deployment.at(folder).ledger
    with closing(ServerLedger(path, witness=path.with_suffix(".witness"))) as opened:
        entries = opened.entries()
    runs = spent_by_run(entries)
    if as_json:
        emit_json({"rows": len(entries), "runs": runs})
        return
    for run in runs:
        phases = ", ".join(f"{count} {phase}" for phase, count in run["released"].items()) or "nothing"
        spent = ", ".join(f"{unit} epsilon {epsilon:.3f}" for unit, epsilon in run["epsilon"].items()) or "unknown"
        sys.stdout.write(f"{run['run']}: released {phases}; spent {spent} at delta {run['delta']:g}\n")
    note(f"{len(entries)} rows, {len(runs)} runs")


@ledger.command("verify")
def ledger_verify(folder: Folder, as_json: AsJson = False) -> None:
    """Check the chain, its witness, and that every checkpoint and adapter rests on it. Exit code 2 when one fails."""
    from server.deployment import Deployment
    from server.doctor import verify_ledger

    rows, heads = verify_ledger(Deployment.at(folder))
    if as_json:
        emit_json({"ok": True, "rows": rows, "rest_on_it": heads})
    else:
        note(f"{rows} rows, an unbroken chain; {heads} checkpoints and adapters rest on it")
