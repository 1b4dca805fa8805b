"""Full model, int8 and student side by side: NDCG@10 on test items, latency, bytes, cold start. A markdown table.

    PYTHONPATH=. python benchmarks/small.py RUN [--model FOLDER] [--users 0] [--json FILE]

RUN is the folder of a finished run, such as `homerank-simulate run --experiment ml-1m`. Without --model its adapter is
exported to a temporary folder first. The test item of each person is ranked in the whole catalogue, what was seen left
out; `of full` is the share of the full model's NDCG@10 and the interval its 95 % bootstrap over people. Latency is from
an event to a new slate of ten after 50 events, one thread; cold start from starting Python to the first slate, item
vectors cached, the best of five.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.compact.check import HeldOut, compare, rank
from client.compact.engine import CompactEngine
from client.compact.export import KINDS, export_model
from client.compact.folder import ModelFolder
from client.full import open_runtime
from shared.metrics import ndcg
from shared.runtime import Runtime
from simulations.evaluation import Case, rank_cases, test_cases
from simulations.runfolder import RunFolder, open_run

STARTS, RESAMPLES = 5, 2000
_FIRST_SLATE = """
import sys
from pathlib import Path
import numpy as np
from client.slate import best_items
from client.store import Store
from shared.artifacts import load_catalogue
run, model, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
catalogue = load_catalogue(run / "items.jsonl")
store = Store(run / "devices.sqlite", durable=False)
history = store.newest(0, catalogue, 64)
if kind == "full":
    from client.full import FullEngine
    engine = FullEngine.open(catalogue, history, folder=run / "adapter")
else:
    from client.compact.engine import CompactEngine
    engine = CompactEngine.open(model, catalogue, history, kind=kind)
scores = np.sum(list(engine.now.scores().values()), axis=0)
sys.stdout.write(str(len(best_items(scores, ~engine.now.past.seen, 10))))
"""


def ranks_of(kind: str, *, runtime: Runtime, model: ModelFolder, cases: list[Case]) -> NDArray[np.int64]:
    """Rank of each case's target."""
    if kind == "full":
        return rank_cases(runtime, cases, seed=0).full
    engine = CompactEngine.open(model.path, runtime.catalogue, cases[0].history, kind=kind)
    return np.array([rank(engine, HeldOut(case.history, case.target)) for case in cases])


def share_interval(own: NDArray[np.float64], full: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of mean(own) / mean(full), people drawn again together."""
    drawn = np.random.default_rng(0).integers(len(own), size=(RESAMPLES, len(own)))
    low, high = np.percentile(own[drawn].mean(axis=1) / full[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def cold_start(run: RunFolder, model: ModelFolder, kind: str) -> float:
    """Seconds from starting Python to the first slate, the best of a few."""
    taken = []
    for _ in range(STARTS):
        started = time.perf_counter()
        call = [sys.executable, "-c", _FIRST_SLATE, str(run.path), str(model.path), kind]
        subprocess.run(call, check=True, capture_output=True)
        taken.append(time.perf_counter() - started)
    return min(taken)


def measure(run: RunFolder, model: ModelFolder, runtime: Runtime, *, users: int, requests: int) -> dict[str, Any]:
    """All figures by model."""
    cases = test_cases(run)
    if users:
        chosen = np.random.default_rng(0).permutation(len(cases))[:users]
        cases = [cases[place] for place in np.sort(chosen).tolist()]
    figures: dict[str, Any] = compare(runtime, model, requests=requests)
    gained: dict[str, NDArray[np.float64]] = {}
    for kind in ("full", *KINDS):
        gained[kind] = np.asarray(ndcg(ranks_of(kind, runtime=runtime, model=model, cases=cases), 10))
        own, full = gained[kind], gained["full"]
        figures[kind] |= {
            "ndcg10": float(own.mean()),
            "of_full": float(own.mean() / full.mean()),
            "of_full_interval": share_interval(own, full),
            "cold_start_s": cold_start(run, model, kind),
        }
    return {"people": len(cases), "models": figures}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", type=Path, help="an exported folder of both kinds")
    parser.add_argument("--users", type=int, default=0, help="people, drawn at random; 0: all")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--json", type=Path, help="file for all figures")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    run = open_run(chosen.run)
    runtime, told = open_runtime(run.catalogue, run.path / "adapter")
    with tempfile.TemporaryDirectory() as folder:
        model = ModelFolder.open(chosen.model) if chosen.model else export_model(runtime, Path(folder), adapter=told)
        results = measure(run, model, runtime, users=chosen.users, requests=chosen.requests)
    print("| model | MB | p50 ms | p99 ms | ten best shared | NDCG@10 | of full, 95 % interval | cold start s |")
    print("|---|---|---|---|---|---|---|---|")
    for name, one in results["models"].items():
        low, high = one["of_full_interval"]
        shared = f"{one['overlap10']:.3f}" if "overlap10" in one else ""
        print(
            f"| {name} | {one['bytes'] / 1e6:.1f} | {one['p50_ms']:.2f} | {one['p99_ms']:.2f} | {shared} |"
            f" {one['ndcg10']:.4f} | {one['of_full']:.4f} ({low:.4f} to {high:.4f}) | {one['cold_start_s']:.2f} |"
        )
    load = os.getloadavg()[0]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(
        f"\n{len(run.catalogue):,} items, {results['people']:,} people, adapter {told},"
        f" {machine}, load {load:.1f}, {datetime.now(UTC):%Y-%m-%d}."
    )
    if chosen.json:
        chosen.json.write_text(json.dumps({**results, "machine": machine, "load": load}, indent=1) + "\n")


if __name__ == "__main__":
    main()
