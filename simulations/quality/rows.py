"""The rows of the quality benchmark by name: how each ranker comes about, and on whose data it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from server.cohorts import participation_cap
from server.popularity import log_popularity
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, load_adapter
from shared.config import Config
from shared.errors import ConfigError, RunError
from shared.metrics import ndcg
from shared.runtime import Runtime, runtime_for
from shared.transfer import start_state
from simulations.evaluation import Alone, Case, rank_local_only, score_alone
from simulations.experiment import LOCAL_RATE_FACTORS
from simulations.quality.base import Ranker, Training
from simulations.quality.central import fit_central, fit_prior
from simulations.quality.classical import fit_ease, fit_item_knn, fit_markov, fit_popularity, popularity_counts
from simulations.quality.factors import fit_bpr
from simulations.quality.federated_factors import fit_fedmf, fit_pfedrec
from simulations.quality.installed import Installed
from simulations.quality.sequence import GRID as SASREC_GRID
from simulations.quality.sequence import fit_sasrec
from simulations.runfolder import RunFolder, open_run

ONE_MACHINE = "one machine"
FEDERATION = "federation"
OWN_DEVICE = "own device"

#: What makes a ranker from a prepared run, what may be learned from it, and a seed.
Fit = Callable[[RunFolder, Training, int], Ranker]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    trains_on: whose events it needs in one place. seeded: chance matters, so it is fitted once for each seed.
    sampled: too slow for everybody, so that `evaluation.local_only_users` devices are asked. newcomers: it can rank
    for a person it was not trained with, so a cold start can be measured. finished: the run folder it was trained in.
    needs: setting without which the row is left out, unless it is asked for by name; its fit then says what is missing.
    """

    fit: Fit
    trains_on: str
    seeded: bool = False
    sampled: bool = False
    newcomers: bool = True
    finished: Path | None = None
    needs: str = ""

    def fits(self, config: Config) -> bool:
        """Whether a configuration has what the row needs."""
        section, _, key = self.needs.partition(".")
        return not self.needs or bool(getattr(getattr(config, section), key))


# --- rankers of our own model ------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedAlone:
    """Our model as each device would train it without the others, anew for each case."""

    runtime: Runtime
    alone: Alone
    seed: int

    def scores(self, cases: Sequence[Case]) -> NDArray[np.float32]:
        """As `Ranker.scores`."""
        return np.stack([score_alone(self.runtime, case, alone=self.alone, seed=self.seed) for case in cases])


def fit_zero_shot(run: RunFolder, training: Training, seed: int) -> Installed:
    """Content and popularity with their start weights. seed: not used, nothing is random."""
    runtime = runtime_for(run.config, run.catalogue)
    return Installed(runtime, _start(runtime, training), stage="start")


def fit_carried(run: RunFolder, training: Training, seed: int) -> Installed:
    """The adapter that the run starts from, with this catalogue's exact popularity and no training here.

    seed: not used, nothing is random. ConfigError without `federation.start_from`, AdapterError when it does not fit.
    """
    if not run.config.federation.start_from:
        raise ConfigError(
            "found federation.start_from = ''; expected an adapter folder for this row. Use --set"
            " federation.start_from=RUN/adapter"
        )
    runtime = runtime_for(run.config, run.catalogue)
    arrays = start_state(runtime, run.config, run.path).arrays
    return Installed(runtime, AdapterState({**_start(runtime, training).arrays, **arrays}))


def fit_local_only(run: RunFolder, training: Training, seed: int) -> TrainedAlone:
    """As many steps as a device gets in the federation, at the best of three rates on validation cases; no noise."""
    runtime = runtime_for(run.config, run.catalogue)
    start, steps = _start(runtime, training), max(1, participation_cap(run.config.federation, run.devices))
    held_out = training.validation[: run.config.evaluation.local_only_users]
    plans = [Alone(start, steps, noise=0.0, factor=factor) for factor in LOCAL_RATE_FACTORS]
    quality = [
        ndcg(rank_local_only(runtime, held_out, alone=plan, seed=seed).full, 10).mean() if held_out else 0.0
        for plan in plans
    ]
    return TrainedAlone(runtime, plans[int(np.argmax(quality))], seed)


def fit_finished(
    run: RunFolder,
    training: Training,
    seed: int,
    *,
    finished: Path,
    tail: float = 0.0,
    personal: bool = False,
) -> Installed:
    """The adapter that a finished run shipped, with the long-tail control at `tail`, with or without personal weights.

    RunError unless that run asks the same questions of the same items.
    """
    trained = open_run(finished)
    same = trained.catalogue.fingerprint == run.catalogue.fingerprint and trained.users == run.users
    if not same or not np.array_equal(trained.test, run.test):
        raise RunError(
            f"{finished}: found a run on other data or another split; expected the items, users and test items of "
            f"{run.path}. Train on the same data, or leave --data out to measure on the run's own"
        )
    adapter, popularity, _ = load_adapter(finished / "adapter")
    runtime = runtime_for(trained.config, trained.catalogue)
    return Installed(runtime, AdapterState({**adapter.arrays, POPULARITY: popularity}), tail=tail, personal=personal)


def _start(runtime: Runtime, training: Training) -> AdapterState:
    """The untrained adapter with exact log popularity."""
    popularity = log_popularity(popularity_counts(training).astype(np.float64), noise_std=0.0)
    return AdapterState({**runtime.start.arrays, POPULARITY: popularity})


# --- the registry ------------------------------------------------------------------------------------------


class _FitAlone(Protocol):
    """A baseline's fit function, which needs no run folder."""

    def __call__(self, training: Training, *, seed: int) -> Ranker: ...


def _plain(fit: _FitAlone) -> Fit:
    """A fit function for the registry."""
    return lambda run, training, seed: fit(training, seed=seed)


#: Settings of the long-tail control that each finished run can be measured at.
TAILS = (0.25, 0.5, 1.0)

#: Every row that needs no finished run, in the order of the table.
ROWS: dict[str, Row] = {
    "popularity": Row(_plain(fit_popularity), FEDERATION),
    "zero-shot": Row(fit_zero_shot, FEDERATION),
    "carried": Row(fit_carried, FEDERATION, needs="federation.start_from"),
    "local-only": Row(fit_local_only, OWN_DEVICE, sampled=True),
    "markov": Row(_plain(partial(fit_markov, priors=(1.0,), decays=(0.0,))), ONE_MACHINE),
    "markov-mixed": Row(_plain(fit_markov), ONE_MACHINE),
    "item-knn": Row(_plain(fit_item_knn), ONE_MACHINE),
    "ease": Row(_plain(fit_ease), ONE_MACHINE),
    "bpr-mf": Row(_plain(fit_bpr), ONE_MACHINE, seeded=True, newcomers=False),
    "fedmf": Row(_plain(fit_fedmf), FEDERATION, seeded=True, newcomers=False),
    "pfedrec": Row(_plain(fit_pfedrec), FEDERATION, seeded=True, newcomers=False),
    "prior": Row(fit_prior, FEDERATION, needs="prior.half_lives"),
    "central": Row(fit_central, ONE_MACHINE, seeded=True),
    "sasrec": Row(_plain(partial(fit_sasrec, grid=SASREC_GRID[:1])), ONE_MACHINE, seeded=True),
}


def rows_with(finished: Sequence[Path]) -> dict[str, Row]:
    """`ROWS` and one row for each finished run: `federated`, or `federated-FOLDER` when there are several."""
    rows = dict(ROWS)
    for path in finished:
        name = "federated" if len(finished) == 1 else f"federated-{path.name}"
        if name in rows:
            raise ConfigError(f"found two runs in folders named {path.name}; expected different names. Rename one")
        rows[name] = Row(partial(fit_finished, finished=path), FEDERATION, finished=path)
        rows[f"{name}-personal"] = Row(partial(fit_finished, finished=path, personal=True), FEDERATION)
        for tail in TAILS:
            more = Row(partial(fit_finished, finished=path, tail=tail), FEDERATION)
            rows[f"{name}-tail-{tail:g}"] = more
    return rows
