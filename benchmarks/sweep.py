"""Settings of the rankers that need no training rounds, compared on held-out validation events, never on test items.

    python benchmarks/sweep.py EXPERIMENT DATA KEY=V1;V2 [KEY=V1;V2 …]
    python benchmarks/sweep.py amazon-scientific ../shared/data/amazon-scientific "model.gamma=3;6" "prior.ridge=10;30"

Every combination of the values is tried: the start ranker (content and popularity) and, where there are half-lives,
the one-round prior of everybody's exact moments on top of it. Prints a line for each, and the best at the end. Standard
errors are of the mean over people; neighbouring settings differ by less than they seem to.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.samples import training_windows
from server.popularity import log_popularity
from server.prior import Priors
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY
from shared.config import merge, override
from shared.items import ItemTable
from shared.layout import MOMENTS, PriorLayout
from shared.metrics import ndcg
from shared.model import Stage
from shared.prior import BALANCE, PRIOR
from shared.runtime import runtime_for
from shared.windows import IGNORE, Windows
from simulations.evaluation import Case, batches, ranks_of, validation_cases
from simulations.quality.base import Training, training_of
from simulations.quality.classical import popularity_counts
from simulations.quality.installed import Installed
from simulations.runfolder import RunFolder, prepare
from simulations.session import build_config

CASES = 3000
#: Windows that are counted at a time.
CHUNK = 512

Pairs = dict[tuple[int, ...], NDArray[np.float64]]


def pairs_of(windows: Windows, layout: PriorLayout, *, items: int) -> Pairs:
    """The moments of all windows with one direction an item, float64 (N, N) each.

    A by the places (h, g) of two half-lives, h <= g, and T by the place (h,). They do not depend on the codes, so any
    number of directions can be tried on them; as windows are short, counting pairs of events is far less work than
    multiplying features.
    """
    age = torch.arange(windows.items.shape[1])[:, None] - torch.arange(windows.items.shape[1])[None, :]
    decays = [torch.where(age >= 0, 0.5 ** (age / half_life), 0.0).double() for half_life in layout.half_lives]
    places = range(len(decays))
    sums: Pairs = {}

    def count(key: tuple[int, ...], rows: torch.Tensor, columns: torch.Tensor, weights: torch.Tensor) -> None:
        index = (rows * items + columns)[weights != 0].numpy()
        found = np.bincount(index, weights=weights[weights != 0].numpy(), minlength=items**2).reshape(items, items)
        sums[key] = sums[key] + found if key in sums else found

    for rows in torch.split(torch.arange(len(windows)), CHUNK):
        batch = windows.pick(rows)
        known = (batch.targets != IGNORE).double()[..., None]  # (B, L, 1)
        skipped = batch.seen & ~batch.content
        counted = (batch.content.double() - layout.skip_penalty * skipped)[:, None, :]  # (B, 1, L)
        features = [decay * counted * known for decay in decays]  # (B, L, L): of event t at position p
        event, target = batch.items[:, None, :], batch.targets[..., None]
        for h in places:
            count((h,), event.expand_as(features[h]), target.clamp(min=0).expand_as(features[h]), features[h])
            for g in places[h:]:
                weights = features[h].mT @ features[g]  # (B, L, L): of a pair of events
                count((h, g), batch.items[..., None].expand_as(weights), event.expand_as(weights), weights)
    return sums


def moments_of(pairs: Pairs, table: ItemTable, layout: PriorLayout) -> AdapterState:
    """What all devices' moments add up to with these codes."""
    codes = table.codes.double().numpy()
    ends = np.cumsum((0, *layout.widths))
    square = np.zeros((layout.features, layout.features))
    targets = np.zeros((layout.features, layout.output))
    for place, width in enumerate(layout.widths):
        targets[ends[place] : ends[place + 1]] = codes[:, :width].T @ pairs[place,] @ codes[:, : layout.output]
        for other in range(place, len(layout.widths)):
            block = codes[:, :width].T @ pairs[place, other] @ codes[:, : layout.widths[other]]
            square[ends[place] : ends[place + 1], ends[other] : ends[other + 1]] = block
    triangle = BALANCE * square[np.triu_indices(layout.features)]
    return AdapterState({name: m.astype(np.float32) for name, m in zip(MOMENTS, (triangle, targets), strict=True)})


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
    known: dict[tuple[object, ...], Pairs] = {}
    lines = []
    for settings in itertools.product(*choices):
        config = override(run.config, *settings)
        runtime = runtime_for(config, run.catalogue)
        state = AdapterState({**runtime.start.arrays, POPULARITY: popularity})
        stages: tuple[Stage, ...] = ("start",)
        if (layout := runtime.scorer.layout) is not None:
            key = (layout.half_lives, layout.skip_penalty, config.model.history)
            if key not in known:
                known = {key: pairs_of(_windows(training, config.model.history), layout, items=training.items)}
            sums = moments_of(known[key], runtime.table, layout)
            solved = Priors.solve([sums], ridge=config.prior.ridge, noise_stds=[0.0])
            state = AdapterState({**state.arrays, PRIOR: solved.whole})
            stages = ("start", "prior")
        for stage in stages:
            mean, error = quality(Installed(runtime, state, stage=stage), cases)
            lines.append((mean, f"{mean:.4f} ± {error:.4f}  {stage:5}  {' '.join(settings)}"))
            report(lines[-1][1])
    report("\nbest first:")
    for _, line in sorted(lines, reverse=True)[:10]:
        report(line)


def _windows(training: Training, length: int) -> Windows:
    """All training windows of everybody."""
    parts = [training_windows(history, length=length) for history in training.histories]
    columns = Windows.__dataclass_fields__
    return Windows(**{name: torch.cat([getattr(part, name) for part in parts]) for name in columns})


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
