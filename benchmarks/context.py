"""What each source of context is worth: the same run with all of them, then without one at a time, then without any.

    python benchmarks/context.py               the synthetic world in which hours, breaks and values matter
    python benchmarks/context.py plain         the synthetic world as it is by default
    python benchmarks/context.py ml-100k       MovieLens 100K, which knows its people's age and gender

Adapters are trained without a prior. Differences are of NDCG@10 on the same people's test items, with their paired
bootstrap interval. Runs are kept under runs/context-NAME; a finished one is read, not repeated. Real data come from
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

import numpy as np

from shared.metrics import ndcg, paired_bootstrap

HEAD = "| sources | NDCG@10 | minus all of them, 95 % interval | train s |\n|---|---|---|---|"
#: One trunk block and a narrow output, so that 200 rounds take a few minutes.
WORLD = [
    *("data.world_users=4000", "data.world_events=30"),
    *("model.blocks=1", "model.history=32", "model.output_dim=64"),
    *("lora.rank=8", "lora.alpha=16", 'lora.targets=["q", "k", "v"]'),
    *("federation.rounds=200", "federation.server_learning_rate=2e-3"),
]
#: Settings and sources of each benchmark. The world has no ratings of its own by default, and no attributes at all.
SETTINGS = {
    "world": (["data.world_context=true", *WORLD], ("kind", "gap", "value", "hour")),
    "plain": (WORLD, ("kind", "gap", "hour")),
    "ml-100k": (["training.window_sample_rate=0.5", "federation.rounds=60"], ("gap", "value", "hour", "attributes")),
}
RESAMPLES = 10_000


def run(name: str, settings: list[str], *, data: str, sources: tuple[str, ...]) -> tuple[np.ndarray, float]:
    """Run through the public command unless that was done before; NDCG@10 of each person (U,), seconds of training."""
    folder = Path("runs") / f"context-{name}"
    if not (folder / "result.json").exists():
        fixed = ["evaluation.every=0", "evaluation.local_only_users=0", "prior.half_lives=[]"]
        fixed.append(f"model.context={json.dumps(sources)}")
        options = [part for setting in [*settings, *fixed] for part in ("--set", setting)]
        command = [sys.executable, "-m", "simulations", "run", "--data", data, *options, "--out", str(folder), "--json"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    with np.load(folder / "per_user.npz", allow_pickle=False) as ranks:
        return ndcg(ranks["federated_full"], 10), float(result["seconds"]["train"])


def main(arguments: list[str]) -> None:
    """Run and print."""
    chosen = arguments[0] if arguments else "world"
    if chosen not in SETTINGS or len(arguments) > 1:
        sys.exit(__doc__)
    settings, sources = SETTINGS[chosen]
    folder = Path(os.environ.get("HOMERANK_DATA", "../shared/data")) / "ml-100k"
    data = str(folder) if chosen == "ml-100k" else "world"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}\n\n{HEAD}", flush=True)
    whole, seconds = run(f"{chosen}-all", settings, data=data, sources=sources)
    print(f"| {', '.join(sources)} | {whole.mean():.4f} | | {seconds:.0f} |", flush=True)
    fewer = {f"without {name}": tuple(kept for kept in sources if kept != name) for name in sources}
    for title, kept in {**fewer, "without any": ()}.items():
        values, seconds = run(f"{chosen}-{title.replace(' ', '-')}", settings, data=data, sources=kept)
        change = paired_bootstrap(values, whole, resamples=RESAMPLES, seed=0)
        interval = f"{change['difference']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f})"
        print(f"| {title} | {values.mean():.4f} | {interval} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
