"""`homerank-client export-model`: the ranker for devices without torch."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.terminal import emit_json

if TYPE_CHECKING:
    from client.compact.export import Kind


class Wanted(StrEnum):
    """What to export."""

    INT8 = "int8"
    STUDENT = "student"
    BOTH = "both"


def export_model(
    out: Annotated[Path, typer.Option(help="The model folder to write.", metavar="FOLDER")],
    home: Annotated[
        Path | None, typer.Option(help="Export the adapter of a profile in this device's folder.", metavar="FOLDER")
    ] = None,
    profile: Annotated[str, typer.Option(help="Whose profile, with --home.")] = "default",
    run: Annotated[
        Path | None,
        typer.Option(
            help="Export the adapter of this finished run, and measure on its validation events.", metavar="FOLDER"
        ),
    ] = None,
    kind: Annotated[Wanted, typer.Option(help="int8: the whole ranker; student: a distilled one; both.")] = Wanted.BOTH,
    users: Annotated[int, typer.Option(min=1, help="With --run: people to measure on, at most.")] = 500,
    requests: Annotated[int, typer.Option(min=1, help="Rankings to time with each model.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Write the ranker as int8 for devices without torch, and compare it with the full model.

    Ends with code 2, and the folder is not usable, when it ranks too differently.
    """
    from client.compact.check import compare, failures, held_out
    from client.compact.export import KINDS
    from client.compact.export import export_model as export
    from client.compact.folder import MANIFEST
    from client.full import open_runtime
    from client.profile import Profile
    from shared.artifacts import load_catalogue
    from shared.errors import AdapterError, ConfigError

    if (home is None) == (run is None):
        raise ConfigError("found both or neither of --home and --run; expected one of them")
    if run is not None:
        catalogue, adapter = load_catalogue(run / "items.jsonl"), run / "adapter"
        if not adapter.is_dir():
            raise AdapterError(f"{run}: found no adapter/; expected the folder of a finished run")
        cases = held_out(run / "devices.sqlite", catalogue, limit=users)
    else:
        person = Profile.open(Path(str(home)), profile)
        catalogue, adapter, cases = load_catalogue(person.catalogue), person.adapter, []
    runtime, told = open_runtime(catalogue, adapter if adapter.is_dir() else None)
    kinds: tuple[Kind, ...] = KINDS if kind is Wanted.BOTH else ("int8",) if kind is Wanted.INT8 else ("student",)
    folder = export(runtime, out, kinds=kinds, adapter=told)
    figures = compare(runtime, folder, cases=cases, requests=requests)
    failed = failures(figures)
    report = {"folder": str(out), "items": len(catalogue), "people": len(cases), "adapter": told, "models": figures}
    if as_json:
        emit_json({**report, "failed": failed})
    else:
        _print(report)
    if failed:
        (out / MANIFEST).unlink()
        raise AdapterError(f"{out}: {'; '.join(failed)}. The folder is not usable; use the full model, or train longer")


def _print(report: dict[str, Any]) -> None:
    """A table, one model a line."""
    wanted = {"bytes": "{:,.0f}", "p50_ms": "{:.2f}", "p99_ms": "{:.2f}", "overlap10": "{:.3f}"}
    wanted |= {"max_difference": "{:.3f}", "ndcg10": "{:.4f}", "of_full": "{:.3f}"}
    rows = [["model", *wanted]]
    for name, figures in report["models"].items():
        rows.append([name, *(form.format(figures[key]) if key in figures else "-" for key, form in wanted.items())])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        sys.stdout.write("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + "\n")
    sys.stdout.write(f"{report['items']:,} items, {report['people']} people; written to {report['folder']}\n")
