"""Membership inference on the event layer: was one window of events in what a device trained on?

The strongest attacker: knows the model, every other window and the canary window itself, sees the device's update, and
lacks only the noise. It projects the update on what the canary adds to it, which is the likelihood-ratio test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from client.samples import training_windows
from client.store import History, Role
from client.trainer import Step, train_locally
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY
from shared.catalogue import Catalogue
from shared.config import Config, merge
from shared.errors import ConfigError
from shared.model import load_parameters
from shared.runtime import Runtime
from shared.schema import EventKind, Item
from simulations.audit.canaries import Claim

#: False positive rate at which the attack is reported, and the confidence of its intervals.
FALSE_POSITIVES, CONFIDENCE = 0.01, 0.95
ITEMS, LENGTH, WINDOWS = 40, 8, 6
#: Far below the norm of the windows' gradients, so that the canary adds as much as it may.
CLIP = 0.1


@dataclass(frozen=True)
class MembershipAudit:
    """What the attack reached.

    epsilon: claimed, None without noise. trials: with the canary, and as many without. alarms: trials without it above
    the threshold, hits: trials with it above. auc: probability that a trial with the canary scores higher than one
    without. ceiling: true positive rate that no attack exceeds at a false positive rate of FALSE_POSITIVES under the
    claim, `Phi(Phi^-1(0.01) + mu)`.
    """

    epsilon: float | None
    delta: float
    trials: int
    alarms: int
    hits: int
    auc: float
    ceiling: float

    @property
    def rate(self) -> float:
        """True positive rate."""
        return self.hits / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper-Pearson interval of the true positive rate, at CONFIDENCE."""
        return clopper_pearson(self.hits, self.trials, error=1 - CONFIDENCE)

    @property
    def passed(self) -> bool:
        """Whether the claim allows such an attack; a true claim is denied with a probability of at most 5 %.

        The lower end of the true positive rate is held against the upper end of the false positive rate.
        """
        if self.epsilon is None:
            return True
        most = clopper_pearson(self.alarms, self.trials, error=1 - CONFIDENCE)[1]
        return self.interval[0] <= _ceiling(most, mu=Claim(self.epsilon, self.delta).mu)


def audit_membership(
    epsilon: float | None, *, delta: float = 1e-5, trials: int = 300, seed: int | None = None
) -> MembershipAudit:
    """Train a tiny model with and without a canary window through the device's own trainer, and attack it.

    Each trial is one Opacus step with fresh noise on WINDOWS windows, released once. The threshold lies where a normal
    distribution fitted to a third set of `trials`, without the canary, has FALSE_POSITIVES above it: set by what the
    code does, not by the noise that it claims. epsilon: of that release at `delta`; None adds no noise. seed: fixed
    noise, for tests; None takes it from the operating system. Raises ConfigError for fewer than two trials.
    """
    from scipy.special import ndtri

    if trials < 2:
        raise ConfigError(f"found {trials} trials; expected at least 2")
    mu = math.inf if epsilon is None else Claim(epsilon, delta).mu
    device = _AttackedDevice(noise_multiplier=1 / mu)
    first = 0 if seed is None else seed * 3 * trials
    scores = np.array(
        [
            device.score(canary=number < trials, seed=None if seed is None else first + number)
            for number in range(3 * trials)
        ]
    )
    having, without, fitted = scores.reshape(3, trials)
    threshold = fitted.mean() - ndtri(FALSE_POSITIVES) * fitted.std(ddof=1)
    return MembershipAudit(
        epsilon=epsilon,
        delta=delta,
        trials=trials,
        alarms=int((without > threshold).sum()),
        hits=int((having > threshold).sum()),
        auc=area_under_curve(having, without),
        ceiling=1.0 if epsilon is None else _ceiling(FALSE_POSITIVES, mu=mu),
    )


class _AttackedDevice:
    """A device with fixed windows on a tiny random model, and the attacker's knowledge of it."""

    def __init__(self, *, noise_multiplier: float) -> None:
        catalogue = Catalogue(tuple(Item(id=f"i{n}", title=f"Item {n}", text=f"group {n % 5}") for n in range(ITEMS)))
        settings = {"backbone": "tiny-bert", "history": LENGTH, "output_dim": 16}
        self._runtime = Runtime(merge(Config(), {"model": settings, "prior": {"half_lives": []}}), catalogue)
        self._runtime.install(AdapterState({POPULARITY: np.zeros(ITEMS, dtype=np.float32)} | self._start))
        self._noise_multiplier = noise_multiplier
        generator = np.random.default_rng(0)
        count = LENGTH * (WINDOWS + 1)
        history = History(
            items=generator.integers(0, ITEMS, count),
            times=60.0 * np.arange(count, dtype=np.float64),
            kinds=np.full(count, EventKind.CLICK, dtype=np.int64),
            roles=np.full(count, Role.TRAIN, dtype=np.int64),
            values=np.full(count, np.nan),
        )
        self._windows = training_windows(history, length=LENGTH)
        self._expected = self._update(canary=False, noise_multiplier=0.0, seed=0)
        added = self._update(canary=True, noise_multiplier=0.0, seed=0) - self._expected
        self._direction = added / np.linalg.norm(added)

    @property
    def _start(self) -> dict[str, NDArray[np.float32]]:
        return dict(self._runtime.start.arrays)

    def score(self, *, canary: bool, seed: int | None) -> float:
        """How far one update goes in the canary's direction."""
        update = self._update(canary=canary, noise_multiplier=self._noise_multiplier, seed=seed)
        return float((update - self._expected) @ self._direction)

    def _update(self, *, canary: bool, noise_multiplier: float, seed: int | None) -> NDArray[np.float64]:
        load_parameters(self._runtime.scorer, self._start)
        step = Step(
            steps=1,
            learning_rate=1.0,
            sample_rate=1.0,
            noise_multiplier=noise_multiplier,
            clip_norm=CLIP,
            names=tuple(self._start),
        )
        windows = self._windows.pick(torch.arange(WINDOWS + int(canary)))  # the canary is the last one
        update = train_locally(self._runtime.scorer, windows, self._runtime.table, step=step, seed=seed)
        return update.pack().astype(np.float64)


def area_under_curve(having: NDArray[np.float64], without: NDArray[np.float64]) -> float:
    """Share of pairs in which the first is higher; ties count half.

    >>> area_under_curve(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
    0.875
    """
    differences = having[:, None] - without[None, :]
    return float(((differences > 0) + 0.5 * (differences == 0)).mean())


def clopper_pearson(count: int, total: int, *, error: float) -> tuple[float, float]:
    """Two-sided interval of a probability of which `count` of `total` were seen; each side errs at most `error / 2`."""
    from scipy.stats import beta

    low = 0.0 if count == 0 else float(beta.ppf(error / 2, count, total - count + 1))
    high = 1.0 if count == total else float(beta.ppf(1 - error / 2, count + 1, total - count))
    return low, high


def _ceiling(rate: float, *, mu: float) -> float:
    from scipy.special import ndtr, ndtri

    return float(ndtr(ndtri(rate) + mu))
