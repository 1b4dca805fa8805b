"""Commands about a person's data: bring it in, take it out, wipe it, and see whether all is well."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from client.cli_service import HOME, AsJson, Home, Who, reaching
from shared.terminal import emit_json


def add_commands(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("import")(import_data)
    for command in (export, forget, doctor):
        app.command()(command)


def import_data(
    folder: Annotated[Path, typer.Argument(help="A data, run or adapter folder.", metavar="FOLDER")],
    what: Annotated[
        str, typer.Option(help="history, catalogue (items alone), adapter, or run: a run's catalogue and adapter.")
    ] = "history",
    user: Annotated[str | None, typer.Option(help="Whose history it is, when it holds several.")] = None,
    home: Home = HOME,
    profile: Who = "default",
    as_json: AsJson = False,
) -> None:
    """Bring FOLDER into the profile: a history (docs/data.md), a catalogue, an adapter, or a simulation's run."""
    from client.service.errands import import_folder

    with reaching(home, profile) as service:
        done = import_folder(service, folder, what=what, user=user)
    if as_json:
        emit_json({"imported": done})
    else:
        for one in done:
            unit = {"history": "events", "catalogue": "items", "adapter": "adapter"}[one["what"]]
            sys.stdout.write(f"imported {one['count']:,} {unit}\n")


def export(
    target: Annotated[Path, typer.Argument(help="A new file that ends in .zip.", metavar="FILE")],
    home: Home = HOME,
    profile: Who = "default",
    as_json: AsJson = False,
) -> None:
    """Write everything this device keeps about the person to FILE, in open formats."""
    from client.service.errands import write_new

    with reaching(home, profile) as service:
        size = write_new(target, lambda: service.call("POST", "/v1/export"))
    if as_json:
        emit_json({"file": str(target), "bytes": size})
    else:
        sys.stdout.write(f"{target}: {size:,} bytes; keep it as private as a diary\n")


def forget(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask. It cannot be undone.")] = False,
    home: Home = HOME,
    profile: Who = "default",
    as_json: AsJson = False,
) -> None:
    """Wipe everything about the person and prove it. The ledger's spend stays, and it says why."""
    if not yes:
        typer.confirm("Forget everything about this person? It cannot be undone.", abort=True, err=True)
    with reaching(home, profile) as service:
        answer = service.call("POST", "/v1/forget", json={"confirm": "forget everything"})
    if as_json:
        emit_json(answer)
        return
    gone = sum(answer["before"].values())
    sys.stdout.write(
        f"gone: {gone:,} rows and {len(answer['files'])} files; {answer['words_searched']:,} words of them"
    )
    sys.stdout.write(f" were searched for in what is left and not found\n{answer['kept']}\n")


def doctor(home: Home = HOME, profile: Who = "default", as_json: AsJson = False) -> None:
    """Check the profile: files, catalogue, adapter, ledger, service. Exit code 1 when something is wrong."""
    from client.checkup import check_up

    findings = check_up(home, profile)
    if as_json:
        emit_json({"ok": all(one.ok for one in findings), "findings": [vars(one) for one in findings]})
    else:
        for one in findings:
            sys.stdout.write(f"{'ok  ' if one.ok else 'BAD '} {one.name}: {one.found}\n")
            if one.remedy:
                sys.stdout.write(f"     {one.remedy}\n")
    if not all(one.ok for one in findings):
        raise typer.Exit(1)
