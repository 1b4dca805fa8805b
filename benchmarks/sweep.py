"""Settings of the rankers that need no training rounds, compared on held-out validation events, never on test items.

    python benchmarks/sweep.py EXPERIMENT DATA KEY=V1;V2 [KEY=V1;V2 …]
    python benchmarks/sweep.py amazon-scientific ../shared/data/amazon-scientific "model.gamma=3;6" "prior.ridge=10;30"

Every combination of the values is tried: the start ranker (content and popularity) and, where there are half-lives,
the one-round prior of everybody's exact moments on top of it. Prints a line for each, and the best at the end. Standard
errors are of the mean over people; neighbouring settings differ by less than they seem to.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from client.samples import training_windows
from server.popularity import log_popularity
from server.prior import Priors
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY
from shared.config import merge, override
from shared.layout import PriorLayout
from shared.metrics import ndcg
from shared.model import Stage
from shared.prior import PRIOR, window_moments
from shared.runtime import Runtime, runtime_for
from shared.windows import Windows
from simulations.evaluation import Case, batches, ranks_of, validation_cases
from simulations.quality.base import training_of
from simulations.quality.classical import popularity_counts
from simulations.quality.installed import Installed
from simulations.runfolder import RunFolder, prepare
from simulations.session import build_config

CASES = 3000
#: Windows whose moments are summed in one product.
CHUNK = 256

Moments = dict[str, np.ndarray]


def moments_of(windows: Windows, runtime: Runtime, layout: PriorLayout) -> Moments:
    """Exact moments of all windows together, float64."""
    total = {name: np.zeros(shape) for name, shape in layout.shapes.items()}
    for rows in torch.split(torch.arange(len(windows)), CHUNK):
        for name, moment in window_moments(windows.pick(rows), runtime.table, layout).items():
            total[name] += moment
    return total


def quality(ranker: Installed, cases: list[Case]) -> tuple[float, float]:
    """NDCG@10 in the whole catalogue and its standard error."""
    scores = (row for batch in batches(cases) for row in ranker.scores(batch))
    found = ndcg(ranks_of(cases, scores, seed=0).full, 10)
    return float(found.mean()), float(found.std() / np.sqrt(len(found)))


def sweep(run: RunFolder, choices: list[tuple[str, ...]], report: Callable[[str], None]) -> None:
    """Measure every combination of settings."""
    training = training_of(run, validation=())
    cases = list(validation_cases(run, limit=CASES))
    popularity = log_popularity(popularity_counts(training).astype(np.float64), noise_std=0.0)
    known: dict[str, Moments] = {}
    lines = []
    for settings in itertools.product(*choices):
        config = override(run.config, *settings)
        runtime = runtime_for(config, run.catalogue)
        state = AdapterState({**runtime.start.arrays, POPULARITY: popularity})
        stages: tuple[Stage, ...] = ("start",)
        if (layout := runtime.scorer.layout) is not None:
            key = f"{layout} {dataclasses.replace(config.model, gamma=0.0, beta=0.0, sharpness=0.0)}"
            if key not in known:
                length = config.model.history
                parts = [training_windows(history, length=length) for history in training.histories]
                windows = Windows(
                    **{
                        name: torch.cat([getattr(part, name) for part in parts])
                        for name in Windows.__dataclass_fields__
                    }
                )
                known = {key: moments_of(windows, runtime, layout)}
            solved = Priors.solve(
                [AdapterState({name: moment.astype(np.float32) for name, moment in known[key].items()})],
                ridge=config.prior.ridge,
                noise_stds=[0.0],
            )
            state = AdapterState({**state.arrays, PRIOR: solved.whole})
            stages = ("start", "prior")
        for stage in stages:
            mean, error = quality(Installed(runtime, state, stage=stage), cases)
            lines.append((mean, f"{mean:.4f} ± {error:.4f}  {stage:5}  {' '.join(settings)}"))
            report(lines[-1][1])
    report("\nbest first:")
    for _, line in sorted(lines, reverse=True)[:10]:
        report(line)


def main(arguments: list[str]) -> None:
    """Run and print."""
    if len(arguments) < 3:
        sys.exit(__doc__)
    experiment, data, *choices = arguments
    config = build_config(experiment=experiment, file=None, assignments=[], options={})
    config = merge(config, {"data": {"source": data}})
    pairs = [choice.partition("=") for choice in choices]
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(config, Path(folder) / "run")
        values = [tuple(f"{key}={value}" for value in given.split(";")) for key, _, given in pairs]
        sweep(run, values, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main(sys.argv[1:])
