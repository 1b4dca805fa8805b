"""Data folders small enough to write in a test, and runs on a tiny random backbone that take a second."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from shared.adapter import AdapterState
from shared.artifacts import load_arrays
from shared.config import Config, override
from shared.terminal import run_cli
from simulations.cli import app
from simulations.engines import run_inline
from simulations.runfolder import RunFolder, prepare

ITEMS = 120
#: A run of a second: two blocks 32 wide, three rounds, no prior.
TINY = (
    "model.backbone=tiny-bert",
    "model.history=8",
    "model.output_dim=16",
    "prior.half_lives=[]",
    "federation.rounds=3",
    "federation.cohort=4",
    "federation.server_learning_rate=0.02",
    "evaluation.every=1",
    "evaluation.curve_users=5",
    "evaluation.local_only_users=2",
    "evaluation.bootstrap=20",
)


def write_data(folder: Path, *, users: int = 12, events: int = 8, items: int = ITEMS) -> Path:
    """events.csv and items.csv: each user clicks `events` different items, one a minute."""
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True)
    with (folder / "items.csv").open("w", newline="") as handle:
        rows = ((f"i{item}", f"Thing {item}", f"a thing of group {item % 7}") for item in range(items))
        csv.writer(handle).writerows([("item", "title", "text"), *rows])
    with (folder / "events.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(("user", "item", "timestamp", "kind"))
        for user in range(users):
            for step, item in enumerate(rng.permutation(items)[:events]):
                writer.writerow((f"u{user}", f"i{item}", 1_700_000_000 + 60 * step, "click"))
    return folder


def tiny_config(data: Path, *assignments: str) -> Config:
    """The configuration TINY with the given settings on top."""
    return override(Config(), f'data.source="{data}"', *TINY, *assignments)


def train_inline(config: Config, folder: Path) -> tuple[RunFolder, AdapterState]:
    """Prepare and train; the trained adapter with popularity, whether it was shipped or not."""
    run = prepare(config, folder)
    run_inline(run.path, devices=run.devices)
    return run, AdapterState(load_arrays(run.path / "candidate.safetensors"))


def same(first: AdapterState, second: AdapterState) -> bool:
    """Bit for bit."""
    return first.shapes == second.shapes and np.array_equal(first.pack(), second.pack())


def tiny_options(data: Path, out: Path, *assignments: str) -> list[str]:
    """The command line of a TINY run."""
    settings = [part for item in (*TINY, *assignments) for part in ("--set", item)]
    return ["run", "--data", str(data), "--out", str(out), *settings]


def invoke(*arguments: str) -> int:
    """Run `homerank-simulate` in this process; its exit code."""
    with pytest.raises(SystemExit) as exit_:
        run_cli(app, "homerank-simulate", arguments)
    return int(exit_.value.code or 0)
