"""The server's journal: one line of JSON for each step of a run and each release, with nothing of what people do.

A line holds numbers, and words from fixed lists; `FIELDS` is all there can be. No text that a device or a person wrote
has a field, nor does a device: refusals are counted, never attributed.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from server.checkpoint import whole_rows
from server.ledger import ServerLedger
from server.spending import spent_by
from shared.errors import HomerankError, RunError
from shared.protocol import PHASES, Manifest

log = logging.getLogger("homerank.server")

#: A journal grows to this many bytes; the one before is kept.
LARGEST = 8 * 1024**2
#: Where a deployment's journal lies in its folder.
JOURNAL = "logs/journal.jsonl"
EVENTS = ("exchange", "outcome", "release")
_CODE = re.compile(r"[a-z][a-z-]{0,29}")
_NAME = re.compile(r"[0-9a-f-]{1,40}")
_SHIPPED = ("start", "prior", "adapter")


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _numbers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_CODE.fullmatch(str(name)) and _number(of) for name, of in value.items())


#: What a line may say, and what each may hold. run: a name made of hashes. refused: counts by code.
FIELDS: dict[str, Callable[[Any], bool]] = {
    "time": _number,
    "event": lambda value: value in EVENTS,
    "run": lambda value: isinstance(value, str) and _NAME.fullmatch(value) is not None,
    "phase": lambda value: value in PHASES,
    "round": _number,
    "rounds": _number,
    "planned": _number,
    "asked": _number,
    "accepted": _number,
    "refused": _numbers,
    "released": lambda value: isinstance(value, bool),
    "update_norm": _number,
    "clip": _number,
    "seconds": _number,
    "epsilon": _numbers,
    "shipped": lambda value: value in _SHIPPED,
    "version": _number,
    "bytes": _number,
}


class Journal:
    """Appends lines to a file. clock: seconds UTC. echo: a stream that gets every line too."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time, echo: TextIO | None = None) -> None:
        self.path = path
        self._clock = clock
        self._echo = echo

    def write(self, event: str, **facts: Any) -> None:
        """Append one line. None is left out. RunError for a field or a value that a journal does not hold."""
        line = {"time": round(self._clock(), 3), "event": event, **facts}
        line = {name: value for name, value in line.items() if value is not None}
        for name, value in line.items():
            if name not in FIELDS or not FIELDS[name](value):
                raise RunError(
                    f"journal: found {name} of another kind; expected one of {', '.join(FIELDS)}, as numbers"
                )
        text = json.dumps(line)
        if self._echo is not None:
            self._echo.write(text + "\n")
            self._echo.flush()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self.path.stat().st_size > LARGEST:
                self.path.replace(self.path.with_suffix(".1.jsonl"))
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            raise RunError(f"{self.path}: could not be written ({error.strerror or error}); make room") from None

    def rows(self) -> list[dict[str, Any]]:
        """What was written, oldest first; a cut last line is left out."""
        return whole_rows(self.path)


def watcher(journal: Journal, *, folder: Path, ledger: ServerLedger, rounds: int) -> Callable[[str, Manifest], None]:
    """What a strategy tells its steps to, so that each exchange is in the journal once it is on the disk.

    folder: of the run. rounds: how many are planned. A journal that cannot be written never stops a run.
    """

    def on_step(step: str, manifest: Manifest) -> None:
        if step != "recorded":
            return
        try:
            row = whole_rows(folder / "metrics.jsonl")[-1]
            spent = {one.unit: one.epsilon for one in spent_by(ledger.entries(), run=manifest.run)}
            known = {name: row.get(name) for name in FIELDS if name not in ("time", "event", "run", "shipped")}
            journal.write("exchange", **{**known, "run": manifest.run, "rounds": rounds, "epsilon": spent or None})
            if "shipped" in row:
                journal.write("outcome", run=manifest.run, shipped=row["shipped"])
        except (HomerankError, OSError, ValueError, IndexError) as error:
            log.warning("the journal has no line of this step: %s", error)

    return on_step
