"""What the server's commands share at a terminal: where the deployment lies, `--json`, and remarks."""

from __future__ import annotations

import atexit
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

if TYPE_CHECKING:
    from server.progress import Progress

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The deployment folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]

# what an experiment is begun with
CatalogueFile = Annotated[
    Path, typer.Option(help="The items file: csv, jsonl or parquet (see docs/data.md).", metavar="FILE")
]
Devices = Annotated[int, typer.Option(min=1, help="Wait until so many devices are connected.")]
ConfigFile = Annotated[Path | None, typer.Option(help="Configuration file (TOML) of the federation.", metavar="FILE")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, section.key=value; may be repeated.", metavar="KEY=VALUE"),
]
Out = Annotated[Path | None, typer.Option(help="Where the run is saved; DIR/run unless given.", metavar="FOLDER")]


def planned(setting: list[str] | None, *, rounds: int | None, devices: int) -> list[str]:
    """The assignments of `--set`, `--rounds` and `--devices`, as `server.runs.prepare_run` takes them."""
    counted = [f"federation.rounds={rounds}"] if rounds else []
    return [*(setting or []), *counted, f"federation.minimum_devices={devices}"]


def note(line: str) -> None:
    """Progress and remarks go to stderr; stdout is for results. Steps of a run become one line that changes."""
    _progress(sys.stderr)(line)


@lru_cache(maxsize=1)
def _progress(stream: TextIO) -> Progress:
    from server.progress import Progress

    made = Progress(stream)
    atexit.register(made.close)  # what comes after a line that changes begins on its own
    return made
