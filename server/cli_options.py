"""What the server's commands share at a terminal: where the deployment lies, `--json`, and remarks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The deployment folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def note(line: str) -> None:
    """Progress and remarks go to stderr; stdout is for results."""
    sys.stderr.write(line + "\n")
