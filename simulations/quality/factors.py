"""BPR-MF (Rendle, Freudenthaler, Gantner and Schmidt-Thieme, UAI 2009) as implemented by `implicit`.

The one baseline that comes from a library: stochastic gradients one pair at a time are slow in Python, and this
implementation is the one most papers run. It is optional: `pip install "homerank[bench]"`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from shared.errors import ConfigError
from simulations.evaluation import Case
from simulations.quality.base import Training
from simulations.quality.classical import Chosen, best_of, popularity_counts, positives

#: Gradient steps on a user's factor for events since training, and their size. Chosen by training without everybody's
#: last training event and folding that event in: 100 steps of 0.2 gained most on validation.
FOLD_STEPS = 100
FOLD_RATE = 0.2


@dataclass(frozen=True)
class Settings:
    """One BPR-MF. width: d. learning_rate, regularization: of implicit's SGD. epochs: passes over the events."""

    learning_rate: float
    regularization: float
    epochs: int
    width: int = 64


#: From MovieLens, which overfits after a hundred slow passes, to sparse data, which wants many fast ones.
GRID = (
    Settings(learning_rate=0.01, regularization=0.01, epochs=100),
    Settings(learning_rate=0.01, regularization=0.03, epochs=100),
    Settings(learning_rate=0.05, regularization=0.03, epochs=100),
    Settings(learning_rate=0.05, regularization=0.03, epochs=400),
)


@dataclass(frozen=True)
class BprFactors:
    """Factors of the users and items of the training data; the last column is the item bias, 1 for users.

    users: float32 (U, d + 1). items: float32 (N, d + 1). own: sorted training items of each user. popularity: float32
    (N,), for users without training events.
    """

    users: NDArray[np.float32]
    items: NDArray[np.float32]
    own: Sequence[NDArray[np.int64]]
    popularity: NDArray[np.float32]
    settings: Settings
    seed: int
    chosen: Chosen = field(default_factory=dict)

    def scores(self, cases: Sequence[Case]) -> NDArray[np.float32]:
        """Float32 (B, N). A user with events since training gets a factor that has seen them."""
        return np.array([self._row(case) for case in cases], dtype=np.float32)

    def _row(self, case: Case) -> NDArray[np.float32]:
        if case.user >= len(self.own) or not len(self.own[case.user]):
            return self.popularity
        now = np.unique(positives(case.history))
        if np.isin(now, self.own[case.user]).all():
            return self.items @ self.users[case.user]
        return self.items @ self._folded(case.user, now)

    def _folded(self, user: int, own: NDArray[np.int64]) -> NDArray[np.float32]:
        """The user's factor (d + 1,) after more BPR steps with the item factors fixed.

        The online update of Rendle and Schmidt-Thieme (RecSys 2008). Negatives come from all items that are not in
        `own`, as often as they are consumed, as in implicit's training.
        """
        rng = np.random.default_rng((self.seed, user))
        odds = self.popularity.astype(np.float64)
        odds[own] = 0
        if not odds.any():
            return self.users[user]
        factor = self.users[user].copy()
        drawn = rng.choice(len(odds), size=(FOLD_STEPS, len(own)), p=odds / odds.sum())
        for negatives in drawn:
            apart = self.items[own] - self.items[negatives]  # (n, d + 1)
            push = 1 / (1 + np.exp(apart @ factor))  # (n,)
            step = push @ apart / len(own) - self.settings.regularization * factor
            factor[:-1] += np.float32(FOLD_RATE) * step[:-1]
        return factor


def fit_bpr(training: Training, *, seed: int, grid: Sequence[Settings] = GRID) -> BprFactors:
    """BPR-MF with one thread, so that a seed gives the same factors; settings chosen on validation.

    Negatives are drawn from everything but the user's training items. Raises ConfigError without `implicit`.
    """
    model = _library()
    own = [np.unique(positives(history)) for history in training.histories]
    ends = np.cumsum([0, *(len(items) for items in own)])
    consumed = csr_matrix(
        (np.ones(ends[-1], dtype=np.float32), np.concatenate(own), ends), shape=(len(own), training.items)
    )
    popularity = popularity_counts(training)

    def candidates() -> Iterator[BprFactors]:
        for settings in grid:
            fitted = model(
                factors=settings.width,
                learning_rate=settings.learning_rate,
                regularization=settings.regularization,
                iterations=settings.epochs,
                num_threads=1,
                random_state=seed,
            )
            fitted.fit(consumed, show_progress=False)
            chosen = {
                "learning_rate": settings.learning_rate,
                "regularization": settings.regularization,
                "epochs": settings.epochs,
            }
            yield BprFactors(fitted.user_factors, fitted.item_factors, own, popularity, settings, seed, chosen)

    return best_of(candidates(), training.validation)


def _library() -> Any:
    """implicit's BPR on the CPU, imported only when it is asked for."""
    try:
        from implicit.cpu.bpr import BayesianPersonalizedRanking  # type: ignore[import-untyped,import-not-found]
    except ImportError:
        raise ConfigError(
            'bpr: found no `implicit`; expected the package that trains BPR-MF. Run pip install "homerank[bench]"'
        ) from None
    return BayesianPersonalizedRanking
