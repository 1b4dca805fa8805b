"""`homerank-client benchmark`: how quick this machine is as a device."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from shared.terminal import emit_json


def benchmark(
    row: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Row by name; may be repeated; the usual ones unless given."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Data folder whose catalogue is ranked; made-up items without."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Run folder whose catalogue and adapter are used.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Model settings (TOML); parameters are random.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Exported model, for the rows that rank with one.")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests of each row.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of made histories, vectors and parameters.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure what a person waits for, on one thread: slates, searches among many items, a large store.

    Rows: slate, slate-prior, slate-start, slate-full, slate-again, slate-stateless, exact-100k, cells-1m, store-1m,
    forget-1m. Measured only when named: slate-100k, exact-1m, graph-1m (minutes), slate-int8, slate-student, start,
    start-student, and load (a minute).
    """
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # read when numpy and torch are first imported
    import torch

    from client.bench.rows import COLUMNS, cells_of, chosen, machine
    from client.bench.workbench import Setting, Workbench

    torch.set_num_threads(1)
    rows = chosen(row or [])
    bench = Workbench(Setting(data=data, run=run, config=config, model=model, requests=requests, seed=seed))
    before, items = machine(), len(bench.catalogue)
    if not as_json:
        _line(COLUMNS)
        _line(["---"] * len(COLUMNS))
    found = {}
    for name, one in rows.items():
        figures = one.run(bench)
        found[name] = {**figures.to_dict(), "target": str(one.target), "reached": figures.reach(one.target)}
        if not as_json:
            _line(cells_of(name, one, figures))
    if as_json:
        emit_json({"items": items, "machine": before, "rows": found})
    else:
        told = ", ".join(f"{name} {value}" for name, value in before.items())
        sys.stdout.write(f"\n{items:,} items; one thread; {told}.\n")


def _line(texts: list[str] | tuple[str, ...]) -> None:
    sys.stdout.write(f"| {' | '.join(texts)} |\n")
    sys.stdout.flush()
