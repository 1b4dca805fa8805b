"""The main job on named experiments, one after another: a markdown table of what each reached.

    python benchmarks/main.py ml-1m ml-1m-private ml-1m-local

Runs are kept under runs/benchmark-NAME. Real data are read from the folder that the experiment names, or from
HOMERANK_DATA/NAME-OF-THAT-FOLDER when the variable is set.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HEAD = (
    "| experiment | NDCG@10 zero-shot | prior | federated | federated minus zero-shot, 95 % interval | HR@10"
    " | NDCG@10, 99 neg. | local only | shipped | train s | peak GB |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def run(name: str) -> dict[str, Any]:
    """Run one experiment through the public command; its result object."""
    command = [sys.executable, "-m", "simulations", "run", "--experiment", name, "--out", f"runs/benchmark-{name}"]
    settings = tomllib.loads(Path(f"simulations/experiments/{name}.toml").read_text(encoding="utf-8"))
    source = settings.get("data", {}).get("source", "world")
    if source != "world" and "HOMERANK_DATA" in os.environ:
        command += ["--data", str(Path(os.environ["HOMERANK_DATA"]) / Path(source).name)]
    done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def row(name: str, result: dict[str, Any]) -> str:
    """One line of the table."""
    metrics, change = result["metrics"], result["intervals"]["federated - zero_shot"]
    alone = metrics["local_only"]
    cells = (
        name,
        f"{metrics['zero_shot']['ndcg@10']:.4f}",
        f"{metrics['prior']['ndcg@10']:.4f}" if "prior" in metrics else "-",
        f"{metrics['federated']['ndcg@10']:.4f}",
        f"{change['difference']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f})",
        f"{metrics['federated']['hr@10']:.4f}",
        f"{metrics['federated']['ndcg@10_99neg']:.4f}",
        f"{alone['ndcg@10']:.4f} ({alone['users']} users)" if alone else "-",
        result["outcome"]["shipped"],
        f"{result['seconds']['train']:.0f}",
        f"{result['peak_rss_bytes'] / 1e9:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def main(names: list[str]) -> None:
    """Run and print."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}")
    print(HEAD, flush=True)
    for name in names:
        print(row(name, run(name)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["ml-100k", "ml-1m", "ml-1m-private", "ml-1m-local"])
