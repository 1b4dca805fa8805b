"""How far a run is, in one line of the terminal: made from the journal's lines among those a ServerApp logs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TextIO

from shared.markup import duration

WIDTH = 24
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


class Progress:
    """Call it with each line of a run's log. A terminal gets one line that changes, anything else a line for each step.

    Lines that are not the journal's go through as they are.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._drawn = False
        self._times: list[float] = []

    def __call__(self, line: str) -> None:
        """Show one line."""
        row = journal_row(line)
        if row is None:
            self._clear()
            self._stream.write(line + "\n")
            return
        if row.get("event") != "exchange":
            return
        if row.get("phase") == "train" and "seconds" in row:
            self._times.append(float(row["seconds"]))
        told = step_in_words(row, times=self._times)
        if self._live:
            self._clear()
            self._stream.write(told)
            self._stream.flush()
            self._drawn = True
        else:
            self._stream.write(told + "\n")

    def close(self) -> None:
        """End the line that changes."""
        if self._drawn:
            self._stream.write("\n")
            self._drawn = False

    def _clear(self) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[2K")
            self._drawn = False


def journal_row(line: str) -> dict[str, Any] | None:
    """A journal's line within a line of a log, whatever a logger wrote before it; None for other lines."""
    text = _ESCAPES.sub("", line)
    start = text.find('{"time": ')
    if start < 0:
        return None
    try:
        row = json.loads(text[start:])
    except ValueError:
        return None
    return row if isinstance(row, dict) and "event" in row else None


def step_in_words(row: Mapping[str, Any], *, times: list[float]) -> str:
    """One exchange in a line, with a bar and the time that is left while training.

    times: seconds of the training rounds so far.

    >>> row = {"phase": "train", "round": 3, "rounds": 12, "asked": 10, "accepted": 9, "refused": {"late": 1}}
    >>> step_in_words({**row, "released": True, "epsilon": {"event": 1.2}}, times=[30.0, 30.0, 30.0])
    '[######                  ] round 3 of 12: 9 of 10 answered (1 late), ε 1.20, about 4 min 30 s left'
    """
    asked, accepted, refused = row.get("asked"), row.get("accepted", 0), row.get("refused") or {}
    answered = f"{accepted} of {asked} answered" if asked is not None else f"{accepted} answered"
    if refused:
        answered += " (" + ", ".join(f"{count} {code}" for code, count in sorted(refused.items())) + ")"
    if not row.get("released", True):
        answered += ", below the quorum: nothing released"
    spent = "".join(f", ε {value:.2f}" for value in (row.get("epsilon") or {}).values())
    if row.get("phase") != "train":
        return f"{_PHASES.get(str(row.get('phase')), 'step')}: {answered}{spent}"
    done, planned = int(row.get("round", 0)), max(int(row.get("rounds", 0)), int(row.get("round", 0)), 1)
    full = WIDTH * done // planned
    left = (planned - done) * sum(times[-5:]) / len(times[-5:]) if times else 0.0
    rest = f", about {duration(left)} left" if left else ""
    return f"[{'#' * full}{' ' * (WIDTH - full)}] round {done} of {planned}: {answered}{spent}{rest}"


_PHASES = {"popularity": "counting", "prior": "summing the prior", "validate": "comparing", "install": "delivering"}
