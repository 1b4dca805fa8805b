"""Federated matrix factorisation: item vectors averaged over cohorts, everything about a person on their device.

| variant | on the device | ranks with |
|---|---|---|
| fedmf | a user factor | global item vectors |
| pfedrec | a score function (weights and bias) | the device's own last copy of the item vectors |

FedMF is Chai, Wang, Chen and Yang (IEEE Intelligent Systems 2021), with the binary loss on sampled negatives that later
work compares with; PFedRec is Zhang et al. (IJCAI 2023) with its linear score function. Simplified: no
encryption of the uploads; a round is a few full-batch steps on the personal part and one on the item vectors; the
server sees cohorts in shuffled passes and not everybody in every round.

Negatives are drawn from everything but the device's own events. Published code often leaves the held-out
items out too, which tells the model what the test items are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulations.evaluation import Case
from simulations.quality.base import Training
from simulations.quality.classical import Chosen, best_of, popularity_counts, positives, validation_ndcg

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """One federation.

    bias, own_items: what `pfedrec` has and `fedmf` has not. ridge: L2 penalty on the weights of the personal part.
    width: d. cohort: devices per round. negatives: per own item. personal_steps: gradient steps on the personal part
    per round. Both rates are of a device's mean loss. passes: most rounds per device. patience: passes without a
    better validation NDCG@10 after which training stops.
    """

    bias: bool
    own_items: bool
    ridge: float
    width: int = 64
    cohort: int = 64
    negatives: int = 8
    personal_steps: int = 3
    personal_rate: float = 5.0
    item_rate: float = 200.0
    passes: int = 100
    patience: int = 10


FEDMF_GRID = tuple(Settings(bias=False, own_items=False, ridge=ridge) for ridge in (0.01, 0.001))
PFEDREC_GRID = tuple(Settings(bias=True, own_items=True, ridge=ridge) for ridge in (0.01, 0.001))


@dataclass(frozen=True)
class Personal:
    """What a device keeps to itself: weights, float32 (d,), and a bias."""

    weights: Vector
    bias: float = 0.0


@dataclass(frozen=True)
class Samples:
    """A device's training data of one round: distinct items, int64 (T,), and labels 1 or 0, float32 (T,)."""

    items: NDArray[np.int64]
    labels: Vector


@dataclass(frozen=True)
class Federation:
    """Item vectors, float32 (N, d), on the server, and the personal part of every device, in device order."""

    items: Vector
    personal: tuple[Personal, ...]


@dataclass(frozen=True)
class FederatedFactors:
    """A trained federation.

    trained: devices with training events, bool (U,). The others are ranked by popularity, float32 (N,).
    """

    federation: Federation
    settings: Settings
    trained: NDArray[np.bool_]
    popularity: Vector
    seed: int
    chosen: Chosen

    def scores(self, cases: Sequence[Case]) -> Vector:
        """Float32 (B, N)."""
        return np.array([self._on_device(case) for case in cases], dtype=np.float32)

    def _on_device(self, case: Case) -> Vector:
        """Scores (N,) that a device computes after training its personal part once more, on its whole history."""
        if case.user >= len(self.trained) or not self.trained[case.user]:
            return self.popularity
        items = self.federation.items
        samples = draw_samples(
            np.unique(positives(case.history)),
            catalogue=len(items),
            negatives=self.settings.negatives,
            rng=np.random.default_rng((self.seed, 1, case.user)),
        )
        rows = items[samples.items]
        personal = _personalise(self.federation.personal[case.user], rows, samples.labels, settings=self.settings)
        scores = items @ personal.weights + personal.bias
        if self.settings.own_items:
            own = rows - self.settings.item_rate * _item_gradients(personal, rows, samples.labels)
            scores[samples.items] = own @ personal.weights + personal.bias
        return scores


def fit_fedmf(training: Training, *, seed: int, grid: Sequence[Settings] = FEDMF_GRID) -> FederatedFactors:
    """Federated matrix factorisation; ridge and number of passes chosen on validation."""
    return best_of([_train(training, seed=seed, settings=settings) for settings in grid], training.validation)


def fit_pfedrec(training: Training, *, seed: int, grid: Sequence[Settings] = PFEDREC_GRID) -> FederatedFactors:
    """PFedRec; ridge, number of passes and whose item vectors to rank with chosen on validation.

    The published model ranks with a device's own copy. That copy differs from the server's vectors in items that the
    device has consumed and in negatives it drew, which pays when held-out items are never drawn.
    """
    trained = [_train(training, seed=seed, settings=settings) for settings in grid]
    both = [
        replace(ranker, settings=replace(ranker.settings, own_items=own), chosen={**ranker.chosen, "own_items": own})
        for ranker in trained
        for own in (True, False)
    ]
    return best_of(both, training.validation)


def _train(training: Training, *, seed: int, settings: Settings) -> FederatedFactors:
    """Rounds until validation NDCG@10 stops rising."""
    own = [np.unique(positives(history)) for history in training.histories]
    trained = np.array([len(items) > 0 for items in own], dtype=np.bool_)
    rng = np.random.default_rng((seed, 0))
    start = 0.1 * rng.standard_normal((training.items + len(own), settings.width), dtype=np.float32)
    best = ranker = FederatedFactors(
        Federation(start[: training.items], tuple(Personal(row) for row in start[training.items :])),
        settings,
        trained,
        popularity_counts(training),
        seed,
        {"ridge": settings.ridge, "passes": 0},
    )
    reached = -1.0
    for number in range(1, settings.passes + 1):
        federation = ranker.federation
        for cohort in _cohorts(np.flatnonzero(trained), size=settings.cohort, rng=rng):
            federation = run_round(federation, {device: own[device] for device in cohort}, settings=settings, rng=rng)
        ranker = replace(ranker, federation=federation, chosen={**ranker.chosen, "passes": number})
        current = validation_ndcg(ranker, training.validation)
        if current > reached:
            reached, best = current, ranker
        elif number - best.chosen["passes"] >= settings.patience:
            break
    return best


def run_round(
    federation: Federation,
    cohort: Mapping[int, NDArray[np.int64]],
    *,
    settings: Settings,
    rng: np.random.Generator,
) -> Federation:
    """One round: each device improves its personal part, then its copy of the item vectors, and sends the copy.

    cohort: training items of each device, sorted, without repeats. The new item vectors are the mean of the copies.
    """
    change = np.zeros_like(federation.items)  # sum over devices of copy minus original
    personal = list(federation.personal)
    for device, own in cohort.items():
        samples = draw_samples(own, catalogue=len(federation.items), negatives=settings.negatives, rng=rng)
        rows = federation.items[samples.items]  # (T, d)
        personal[device] = _personalise(personal[device], rows, samples.labels, settings=settings)
        change[samples.items] -= settings.item_rate * _item_gradients(personal[device], rows, samples.labels)
    return Federation(federation.items + change / np.float32(len(cohort)), tuple(personal))


def draw_samples(own: NDArray[np.int64], *, catalogue: int, negatives: int, rng: np.random.Generator) -> Samples:
    """A device's own items, labelled 1, and up to `negatives` others for each, labelled 0.

    | item                                   | can be drawn as a negative |
    |----------------------------------------|----------------------------|
    | among the device's own items           | no                         |
    | the device's held-out items            | yes                        |
    | everything else                        | yes                        |
    | fewer are left than asked for          | all of them                |

    own: sorted, without repeats. Draws are uniform, without replacement.
    """
    others = catalogue - len(own)
    drawn = rng.choice(others, size=min(negatives * len(own), others), replace=False, shuffle=False)
    # The k-th item that is not owned is k plus the number of owned items before it.
    drawn += np.searchsorted(own - np.arange(len(own)), drawn, side="right")
    labels = np.repeat(np.array([1, 0], dtype=np.float32), (len(own), len(drawn)))
    return Samples(np.concatenate([own, drawn]), labels)


def _personalise(personal: Personal, rows: Vector, labels: Vector, *, settings: Settings) -> Personal:
    """Gradient steps on the personal part; rows: item vectors of the samples, (T, d)."""
    weights, bias, rate = personal.weights, personal.bias, np.float32(settings.personal_rate)
    kept = np.float32(1 - settings.personal_rate * settings.ridge)
    for _ in range(settings.personal_steps):
        errors = _errors(Personal(weights, bias), rows, labels)
        weights = kept * weights - rate * (errors @ rows)
        if settings.bias:
            bias -= float(rate * errors.sum())
    return Personal(weights, bias)


def _item_gradients(personal: Personal, rows: Vector, labels: Vector) -> Vector:
    """Gradient of a device's mean loss with respect to its copies of the samples' item vectors, (T, d)."""
    return _errors(personal, rows, labels)[:, None] * personal.weights


def _errors(personal: Personal, rows: Vector, labels: Vector) -> Vector:
    """Gradient of a device's mean binary cross-entropy with respect to each logit, (T,)."""
    logits = rows @ personal.weights + np.float32(personal.bias)
    return (0.5 * (1 + np.tanh(0.5 * logits)) - labels) / np.float32(len(labels))


def _cohorts(devices: NDArray[np.int64], *, size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Every device once, in random order."""
    order = rng.permutation(devices).tolist()
    for start in range(0, len(order), size):
        yield order[start : start + size]
