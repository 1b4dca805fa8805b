"""What an operator wants to know of a server, read from its files; nothing is changed and no device is named.

Everything may be missing: a new deployment has no run, a run without privacy no epsilon, a folder no certificate.
"""

from __future__ import annotations

import json
import shutil
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from server.checkpoint import whole_rows
from server.journal import JOURNAL, Journal
from server.ledger import ServerLedger
from server.population import Population, population
from server.publishing import Published, published
from server.spending import Spent, spent_by
from shared.config import Config, load_config
from shared.errors import HomerankError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunView:
    """One run. rows: of metrics.jsonl, in order. changed: seconds UTC of its newest step, None before the first.

    name: as ledgers know it, "" where none does. spent: by unit. problem: why its ledger or its settings say nothing.
    """

    folder: Path
    config: Config
    rows: Sequence[Row] = ()
    changed: float | None = None
    name: str = ""
    spent: Sequence[Spent] = ()
    problem: str = ""

    @property
    def training(self) -> list[Row]:
        """The training rounds."""
        return [row for row in self.rows if row.get("phase") == "train"]

    @property
    def outcome(self) -> Row | None:
        """The comparison that ended it, None while it goes on."""
        return next((row for row in reversed(self.rows) if "shipped" in row), None)

    @property
    def accepted(self) -> int:
        """Replies that were taken, in all phases."""
        return sum(int(row.get("accepted") or 0) for row in self.rows)

    @property
    def refused(self) -> Counter[str]:
        """Replies that were not, by reason."""
        codes: Counter[str] = Counter()
        for row in self.rows:
            codes.update(row.get("refused") or {})
        return codes


@dataclass(frozen=True)
class Glance:
    """One moment of a server. now: seconds UTC. journal: its newest lines, oldest first. free: bytes on its disk.

    certificate_ends: seconds UTC, None without a certificate. runs_known: how many its ledger knows.
    """

    folder: Path
    now: float
    run: RunView | None = None
    devices: Population = field(default_factory=Population)
    releases: Sequence[Published] = ()
    releases_problem: str = ""
    journal: Sequence[Row] = ()
    runs_known: int = 0
    certificate_ends: float | None = None
    free: int = 0

    @property
    def latest(self) -> Published | None:
        """The release that devices are sent to."""
        return next((one for one in self.releases if one.latest), None)


def look(folder: Path, *, run: Path | None = None, clock: Callable[[], float] = time.time) -> Glance:
    """Read everything. run: its folder, the newest of the deployment unless given. clock: seconds UTC now."""
    folder = folder.expanduser().resolve()
    journal = Journal(folder / JOURNAL).rows()
    releases, problem = _releases(folder)
    view, known = _run(folder, run or newest_run(folder))
    return Glance(
        folder=folder,
        now=clock(),
        run=view,
        devices=population(folder, clock=clock),
        releases=releases,
        releases_problem=problem,
        journal=journal,
        runs_known=known,
        certificate_ends=_certificate_ends(folder / "server.pem"),
        free=shutil.disk_usage(folder).free,
    )


def newest_run(folder: Path) -> Path | None:
    """The run folder that changed last: DIR, DIR/run, one under DIR/runs, or one that was told to lie elsewhere."""
    places = [folder, folder / "run", *sorted((folder / "runs").glob("*")), *_told_elsewhere(folder)]
    found = [place for place in places if (place / "config.toml").is_file()]
    return max(found, key=_changed_or_made, default=None)


def _told_elsewhere(folder: Path) -> list[Path]:
    """Run folders that the newest experiment (rounds.json) and the newest bundle name."""
    found = []
    with suppress(OSError, ValueError, KeyError, TypeError):
        found.append(Path(json.loads((folder / "rounds.json").read_text(encoding="utf-8"))["folder"]))
    with suppress(OSError, ValueError, KeyError, TypeError):
        bundle = tomllib.loads((folder / "app" / "pyproject.toml").read_text(encoding="utf-8"))
        found.append(Path(bundle["tool"]["flwr"]["app"]["config"]["out"]))
    return found


def _changed_or_made(run: Path) -> float:
    return _changed(run) or (run / "config.toml").stat().st_mtime


def _changed(run: Path) -> float | None:
    metrics = run / "metrics.jsonl"
    return metrics.stat().st_mtime if metrics.exists() else None


def _run(folder: Path, run: Path | None) -> tuple[RunView | None, int]:
    """The run, and how many runs its ledger knows."""
    if run is None or not (run / "config.toml").is_file():
        return None, 0
    try:
        config, rows = load_config(run / "config.toml"), whole_rows(run / "metrics.jsonl")
    except (HomerankError, ValueError) as error:
        return RunView(run, Config(), problem=str(error)), 0
    place = next((p for p in (run / "server-ledger.sqlite", folder / "ledger.sqlite") if p.exists()), None)
    name, spent, problem, known = "", tuple[Spent, ...](), "", 0
    if place is not None:
        try:
            ledger = ServerLedger(place, witness=place.with_suffix(".witness"))
            try:
                entries, runs = ledger.entries(), ledger.runs()
            finally:
                ledger.close()
            known = len(runs)
            name = _name_of(run)
            spent = spent_by(entries, run=name)
        except HomerankError as error:
            problem = str(error)
    return RunView(run, config, rows, _changed(run), name, spent, problem), known


def _name_of(run: Path) -> str:
    """The run's name as its checkpoint tells, "" before there is one."""
    try:
        with safe_open(str(run / "checkpoint.safetensors"), framework="numpy") as checkpoint:
            return str(json.loads(checkpoint.metadata()["state"])["run"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return ""


def _releases(folder: Path) -> tuple[list[Published], str]:
    try:
        return published(folder), ""
    except HomerankError as error:
        return [], str(error)


def _certificate_ends(path: Path) -> float | None:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
    except (OSError, ValueError):
        return None
