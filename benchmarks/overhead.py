"""What the inline engine costs besides training: CPU milliseconds per message, and memory for many virtual devices.

    PYTHONPATH=. python benchmarks/overhead.py --devices 10000 --cohort 500

The trainer is replaced by one that returns zeros; everything else of a round is the real thing: sampling, messages,
manifest, ledger, store, windows, checks, aggregation. The backbone is the default one.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from client.trainer import Step
from server.strategy import Strategy
from shared.adapter import AdapterState
from shared.config import Config, merge
from simulations.engines import run_inline
from simulations.runfolder import prepare


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--cohort", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=4)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    settings = {
        "data": {"world_users": chosen.devices, "world_events": 12},
        "prior": {"half_lives": []},
        "privacy": {"mode": "event"},
        "federation": {"cohort": chosen.cohort, "rounds": chosen.rounds},
        "evaluation": {"every": 0},
    }
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run = prepare(merge(Config(), settings), Path(folder) / "run")
        print(f"registered {run.devices} virtual devices in {time.perf_counter() - started:.1f} s")

        def no_training(
            scorer: object, windows: object, table: object, *, step: Step, seed: int | None
        ) -> AdapterState:
            shapes = {name: p.shape for name, p in scorer.adapter_parameters.items()}  # type: ignore[attr-defined]
            return AdapterState({name: np.zeros(shapes[name], dtype=np.float32) for name in step.names})

        plain_round = Strategy._training_round

        def timed_round(*arguments: Any) -> bool:
            before = time.process_time()
            released = plain_round(*arguments)
            seconds.append(time.process_time() - before)
            return released

        with (
            mock.patch("client.trainer.train_locally", no_training),
            mock.patch.object(Strategy, "_training_round", timed_round),
        ):
            run_inline(run.path, devices=run.devices)
    per_message = [1000 * value / chosen.cohort for value in seconds]
    print(f"CPU milliseconds per message, by round: {', '.join(f'{value:.2f}' for value in per_message)}")
    print("(the first round also loads the backbone and encodes the catalogue when it is not cached)")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
