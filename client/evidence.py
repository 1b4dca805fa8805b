"""Which past events carry an item's score, for the parts of the score that are made of events.

    content, sharpness 0     gamma w_t <p_t, p_i>                     adds up exactly: the score is this sum
    content, sharpness tau   r_t * content_i                          r_t = w_t exp(tau s_t) / sum, its softmax's shares
    prior                    q_t / q_i * (prior_i - floor_i)          q_t: what event t adds to q_i, which is linear

The prior's q adds up exactly over events; its score is a function g of that one sum. What g rises above g(0), which is
the score of an item the prior knows nothing of, is shared in proportion to q_t: the path integral of Aumann & Shapley
(1974; "integrated gradients", Sundararajan et al., ICML 2017). The part of the adapter is not made of events and is not
shared out. Symbols as in `shared.content` and `shared.prior`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from client.scale import Floats
from client.store import History
from shared.schema import POSITIVE_KINDS, SEEN_KINDS

if TYPE_CHECKING:
    from shared.items import ItemTable
    from shared.model import Scorer

_POSITIVE = [int(kind) for kind in POSITIVE_KINDS]
_SEEN = [int(kind) for kind in SEEN_KINDS]


@dataclass(frozen=True)
class PriorReading:
    """The solved prior and how it is mixed into a score; names as in `shared.sections.Prior`.

    matrix: float32 (F, k). codes: float32 (N, c). share: (N,) popularity shares.
    """

    matrix: NDArray[np.float32]
    codes: NDArray[np.float32]
    share: NDArray[np.floating]
    half_lives: tuple[float, ...]
    widths: tuple[int, ...]
    skip_penalty: float
    kappa: float
    fusion: float
    floor: float


@dataclass(frozen=True)
class Reading:
    """What the ranker reads in a history, as plain arrays.

    plain: float32 (N, d). gamma: weight of content in the score. length: newest events that are read. share: float32
    (N,), each item's part of all events.
    """

    plain: NDArray[np.float32]
    share: NDArray[np.floating]
    gamma: float
    half_life: float
    sharpness: float
    length: int
    prior: PriorReading | None = None

    @classmethod
    def of(cls, scorer: Scorer, table: ItemTable, *, share: NDArray[np.floating] | None = None) -> Reading:
        """How a scorer reads a history. share: where it is not the table's. Arrays are not copied."""
        model, prior = scorer.settings, scorer.prior_settings
        parts = table.share.numpy() if share is None else share
        read = None
        if (solved := scorer.prior_of("prior")) is not None:
            layout, matrix = solved
            read = PriorReading(
                matrix=matrix.numpy(),
                codes=table.codes.numpy(),
                share=parts,
                half_lives=layout.half_lives,
                widths=layout.widths,
                skip_penalty=layout.skip_penalty,
                kappa=prior.kappa,
                fusion=prior.fusion,
                floor=prior.floor,
            )
        return cls(
            plain=table.plain.numpy(),
            share=parts,
            gamma=scorer.weight("gamma", stage="adapter"),
            half_life=model.content_half_life,
            sharpness=model.sharpness,
            length=model.history,
            prior=read,
        )

    def weighted(self, weights: NDArray[np.floating]) -> Reading:
        """The reading with a person's own weights, (3,) from `client.personal`."""
        linear, expected = float(weights[0]), float(weights[1])
        prior = self.prior
        if prior is not None:
            prior = replace(prior, kappa=expected * prior.kappa, fusion=expected * prior.fusion)
        return replace(self, gamma=linear * self.gamma, prior=prior)


@dataclass(frozen=True)
class EventShares:
    """What each event that the ranker reads adds to one item's score; arrays are (n,), oldest first.

    positions: int64, place of each event in the history. content adds up to the content part; prior and `floor` to the
    prior's. estimate: q_t, adds up to q_i.
    """

    positions: NDArray[np.int64]
    content: Floats
    prior: Floats
    estimate: Floats
    floor: float = 0.0


def event_shares(reading: Reading, history: History, item: int) -> EventShares:
    """Split content and prior of an item's score over the newest `reading.length` events."""
    first = max(0, len(history) - reading.length)
    recent = history[first:]
    positions = np.arange(first, len(history))
    content = _content_shares(reading, recent, item)
    if reading.prior is None:
        return EventShares(positions, content, np.zeros(len(recent)), np.zeros(len(recent)))
    estimate, deviation = _estimates(reading.prior, recent, item)
    floor, shares = _prior_shares(reading.prior, estimate, item=item, deviation=deviation)
    return EventShares(positions, content, shares, estimate, floor)


def _content_shares(reading: Reading, recent: History, item: int) -> Floats:
    age = np.arange(len(recent))[::-1]
    weights = 0.5 ** (age / reading.half_life) * np.isin(recent.kinds, _POSITIVE)
    if not weights.sum() > 0:
        return np.zeros(len(recent))
    weights = weights / max(float(weights.sum()), 1e-9)
    likeness = reading.plain[recent.items].astype(np.float64) @ reading.plain[item].astype(np.float64)
    if not reading.sharpness:
        return reading.gamma * weights * likeness
    near = weights * np.exp(reading.sharpness * (likeness - 1))
    pooled = 1 + np.log(max(float(near.sum()), 1e-30)) / reading.sharpness
    return reading.gamma * pooled * near / max(float(near.sum()), 1e-30)


def _estimates(prior: PriorReading, recent: History, item: int) -> tuple[Floats, float]:
    """q_t of each event (n,), and the standard deviation of q over the catalogue."""
    liked = np.isin(recent.kinds, _POSITIVE)
    skipped = np.isin(recent.kinds, _SEEN) & ~liked
    counted = liked - prior.skip_penalty * skipped
    age = np.arange(len(recent))[::-1]
    output = prior.matrix.shape[1]
    wanted = prior.matrix.astype(np.float64) @ prior.codes[item, :output]  # (F,)
    estimate, state, first = np.zeros(len(recent)), np.zeros(output), 0
    for half_life, width in zip(prior.half_lives, prior.widths, strict=True):
        part = slice(first, first + width)
        read = (0.5 ** (age / half_life) * counted)[:, None] * prior.codes[recent.items, :width]  # (n, width)
        estimate += read @ wanted[part]
        state += read.sum(0) @ prior.matrix[part]
        first += width
    q = prior.codes[:, :output] @ state.astype(np.float32)  # (N,)
    return estimate, max(float(q.std(ddof=1)), 1e-12)


def _prior_shares(prior: PriorReading, estimate: Floats, *, item: int, deviation: float) -> tuple[float, Floats]:
    """g(0), and what each event adds to it (n,)."""
    total, least = float(estimate.sum()), float(prior.floor * prior.share[item])
    nothing = prior.kappa * np.log(least)
    if abs(total) < 1e-9 * least:  # g is straight here: its slope at 0
        return nothing, (prior.kappa / (2 * least) + prior.fusion / deviation) * estimate
    larger = (abs(total) + np.hypot(total, 2 * least)) / 2
    soft = least * (least / larger) if total < 0 else larger
    gain = prior.kappa * np.log(soft) + prior.fusion * total / deviation - nothing
    return nothing, gain / total * estimate
