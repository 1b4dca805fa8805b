"""The same model with everybody's events on one machine: what federation costs, and what training adds to the prior."""

from __future__ import annotations

import numpy as np
import torch

from client.samples import training_windows
from client.trainer import CHUNK
from server.cohorts import cohort_size
from server.optimiser import ServerOptimiser, schedule
from server.popularity import log_popularity
from server.prior import Priors, groups_of, turn_of
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY
from shared.errors import ConfigError
from shared.model import trainable
from shared.prior import PRIOR, window_moments
from shared.runtime import Runtime, runtime_for
from shared.transfer import start_state
from shared.windows import Windows
from simulations.quality.base import Training
from simulations.quality.classical import popularity_counts
from simulations.quality.installed import Installed
from simulations.runfolder import RunFolder


def fit_prior(run: RunFolder, training: Training, seed: int) -> Installed:
    """The closed-form prior of everybody's moments, nothing trained. seed: not used, nothing is random."""
    runtime = runtime_for(run.config, run.catalogue)
    priors = _priors(run, runtime, _windows(run, training))
    return Installed(runtime, _state(runtime, training, priors), stage="prior")


def fit_central(run: RunFolder, training: Training, seed: int) -> Installed:
    """The run's recipe on pooled windows: as many optimiser steps, as many windows in each, the same optimiser.

    A step draws windows from the whole group at random where a federated round has those of K devices, and trains both
    factors of every low-rank product, which only a federation has to alternate.
    """
    runtime, federation = runtime_for(run.config, run.catalogue), run.config.federation
    windows = _windows(run, training)
    priors = _priors(run, runtime, windows) if run.config.prior.half_lives else None
    groups = groups_of(run.config, range(run.devices))
    pools = [[windows[device] for device in group if len(windows[device])] for group in groups]
    generator = np.random.default_rng((seed, 17))
    planned = cohort_size(federation, run.devices)
    start = state = start_state(runtime, run.config, run.path)
    optimiser, averaged, rounds = ServerOptimiser.from_config(federation), state.zeros(), 0
    for number in range(1, federation.rounds + 1):
        group, _ = turn_of(number, groups=len(groups))
        runtime.install(_state(runtime, training, priors, parameters=state, group=group))
        gradient = _gradient(runtime, pools[group], run=run, planned=planned, generator=generator)
        change, factor = gradient * -run.config.training.local_learning_rate, schedule(federation, number)
        state = optimiser.apply(state, change, factor=factor, start=start)
        if number > federation.rounds * (1 - federation.average_last):
            averaged, rounds = averaged + state, rounds + 1
    return Installed(
        runtime, _state(runtime, training, priors, parameters=averaged * (1 / rounds) if rounds else state)
    )


def _windows(run: RunFolder, training: Training) -> list[Windows]:
    return [training_windows(history, length=run.config.model.history) for history in training.histories]


def _priors(run: RunFolder, runtime: Runtime, windows: list[Windows]) -> Priors:
    layout = runtime.scorer.layout
    if layout is None:
        raise ConfigError(
            "found prior.half_lives = []; expected half-lives for this row. Use --set prior.half_lives=[2]"
        )
    sums = []
    for group in groups_of(run.config, range(run.devices)):
        total = {name: np.zeros(shape) for name, shape in layout.shapes.items()}
        for device in group:
            for name, moment in window_moments(windows[device], runtime.table, layout).items():
                total[name] += moment
        sums.append(AdapterState({name: moment.astype(np.float32) for name, moment in total.items()}))
    return Priors.solve(sums, ridge=run.config.prior.ridge, noise_stds=[0.0] * len(sums))


def _state(
    runtime: Runtime,
    training: Training,
    priors: Priors | None,
    *,
    parameters: AdapterState | None = None,
    group: int | None = None,
) -> AdapterState:
    """Parameters with exact popularity and the prior: of everybody, or what a group trains against."""
    counts = popularity_counts(training).astype(np.float64)
    arrays = {**(parameters or runtime.start).arrays, POPULARITY: log_popularity(counts, noise_std=0.0)}
    if priors is not None:
        arrays[PRIOR] = priors.whole if group is None else priors.for_group(group)
    return AdapterState(arrays)


def _gradient(
    runtime: Runtime, pool: list[Windows], *, run: RunFolder, planned: int, generator: np.random.Generator
) -> AdapterState:
    """Sum of window gradients over the planned devices' worth of windows, divided by the planned cohort."""
    share = planned * run.config.training.window_sample_rate / len(pool)
    parameters = trainable(runtime.scorer)
    for windows in pool:
        rows = torch.from_numpy(np.flatnonzero(generator.random(len(windows)) < share))
        for chunk in torch.split(rows, CHUNK) if len(rows) else ():
            torch.autograd.backward(runtime.scorer.window_losses(windows.pick(chunk), runtime.table).sum())
    arrays = {
        name: (p.grad if p.grad is not None else torch.zeros_like(p)).numpy() / planned
        for name, p in parameters.items()
    }
    change = AdapterState({name: array.astype(np.float32, copy=True) for name, array in arrays.items()})
    for parameter in parameters.values():
        parameter.grad = None
    return change
