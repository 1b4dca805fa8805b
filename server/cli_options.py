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


def note(line: str) -> None:
    """Progress and remarks go to stderr; stdout is for results. Steps of a run become one line that changes."""
    _progress(sys.stderr)(line)


@lru_cache(maxsize=1)
def _progress(stream: TextIO) -> Progress:
    from server.progress import Progress

    made = Progress(stream)
    atexit.register(made.close)  # what comes after a line that changes begins on its own
    return made
