"""Utility under each kind of privacy: the main job with one recipe and only the privacy changed.

    python benchmarks/privacy.py ml-1m          none, event 8, user 8, user 2, both
    python benchmarks/privacy.py world 1000 10000 100000      user level 8 and 2 by population
    python benchmarks/privacy.py correlated 1 5 20            noise anticorrelated over so many rounds, plain SGD

Runs are kept under runs/privacy-NAME; a finished one is read, not repeated. Real data come from
HOMERANK_DATA when it is set.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HEAD = (
    "| run | devices | epsilon per window | per person | NDCG@10 zero-shot | trained | difference, 95 % interval"
    " | comparison said | shipped | train s |\n|---|---|---|---|---|---|---|---|---|---|"
)
MODES = {
    "none": ["--privacy", "none"],
    "event-8": ["--privacy", "event", "--epsilon", "8"],
    "user-8": ["--privacy", "user", "--epsilon", "8"],
    "user-2": ["--privacy", "user", "--epsilon", "2"],
    "both-8-8": ["--privacy", "both", "--epsilon", "8", "--user-epsilon", "8"],
}


def run(name: str, arguments: list[str]) -> dict[str, Any]:
    """Run through the public command unless it has been run already; its result object."""
    folder = Path("runs") / f"privacy-{name}"
    if not (folder / "result.json").exists():
        command = [sys.executable, "-m", "simulations", "run", *arguments, "--out", str(folder), "--json"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))


def row(name: str, result: dict[str, Any]) -> str:
    """One line of the table."""
    metrics, change = result["metrics"], result["intervals"]["federated - zero_shot"]
    layers, outcome = result["privacy"].get("layers", {}), result["outcome"]
    epsilons = [f"{layers[unit]['epsilon']:.2f}" if unit in layers else "-" for unit in ("event", "user")]
    said = "-" if outcome["gain"] is None else f"{outcome['gain']:+.4f} ± {outcome['noise'] or 0:.4f}"
    cells = (
        name,
        f"{result['data']['users']:,}",
        *epsilons,
        f"{metrics['zero_shot']['ndcg@10']:.4f}",
        f"{metrics['federated']['ndcg@10']:.4f}",
        f"{change['difference']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f})",
        said,
        outcome["shipped"],
        f"{result['seconds']['train']:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def _movielens(names: list[str]) -> None:
    data = ["--data", str(Path(os.environ["HOMERANK_DATA"]) / "ml-1m")] if "HOMERANK_DATA" in os.environ else []
    settings = ["--experiment", "ml-1m-private", *data, "--set", "evaluation.local_only_users=0"]
    for name in names or list(MODES):
        print(row(name, run(f"ml-1m-{name}", [*settings, *MODES[name]])), flush=True)


def _world(populations: list[int]) -> None:
    for users in populations:
        size = ["--set", f"data.world_users={users}", "--cohort", str(max(1, users // 20))]
        for epsilon in ("8", "2"):
            arguments = ["--experiment", "world-user", *size, "--epsilon", epsilon]
            print(row(f"user-{epsilon}", run(f"world-{users}-user-{epsilon}", arguments)), flush=True)


def _correlated(bands: list[int], users: int = 2000, rate: float = 0.5) -> None:
    settings = [f"data.world_users={users}", "federation.sampling=cyclic", "federation.server_optimizer=sgd"]
    settings += [f"federation.server_learning_rate={rate}", "federation.average_last=0.0"]
    options = [part for setting in settings for part in ("--set", setting)]
    for width in bands:
        arguments = ["--experiment", "world-user", "--cohort", str(users // 20), *options]
        name = f"bands-{width}"
        print(row(name, run(f"world-{name}", [*arguments, "--set", f"privacy.noise_bands={width}"])), flush=True)


def main(arguments: list[str]) -> None:
    """Run and print."""
    if not arguments or arguments[0] not in ("ml-1m", "world", "correlated"):
        sys.exit(__doc__)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}\n\n{HEAD}", flush=True)
    if arguments[0] == "ml-1m":
        _movielens(arguments[1:])
    elif arguments[0] == "correlated":
        _correlated([int(width) for width in arguments[1:]] or [1, 5, 20])
    else:
        _world([int(users) for users in arguments[1:]] or [1000, 10_000, 100_000])


if __name__ == "__main__":
    main(sys.argv[1:])
