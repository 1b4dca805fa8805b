"""Greedy choice of a slate: relevance plus what an item adds to, or takes from, the items above it.

At each place the item with the largest value is taken,

    value_i = relevance_i + sum over terms of gain_i(items taken so far)

among those that the rules allow. Alone, each term is a published re-ranker with relevance in its own unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from client.scale import Floats

Figures = dict[str, float]
#: Part of the wanted distribution mixed into the slate's, so that the divergence stays finite (Steck 2018).
CALIBRATION_MIX = 0.01
#: A determinant gain below this counts as this: an exact copy of an earlier item.
COPY = 1e-10


class Term(Protocol):
    """Something that the value of an item depends on. Positions are those of the pool."""

    def gains(self) -> Floats:
        """What each item of the pool gains if it comes next, (P,)."""

    def take(self, position: int) -> None:
        """Note that an item was taken."""

    def figures(self, position: int) -> Figures:
        """The numbers behind an item's gain, before it is taken."""


class Rule(Protocol):
    """Something that an item must meet to be taken."""

    #: False: where no item meets the rule, it does not count at this place.
    strict: bool

    def allowed(self) -> NDArray[np.bool_]:
        """Which items of the pool may come next, (P,)."""

    def take(self, position: int) -> None:
        """Note that an item was taken."""

    def figures(self, position: int) -> Figures:
        """The numbers behind what the rule did to an item; none if nothing."""


@dataclass(frozen=True)
class Arrangement:
    """An order of the pool: positions, the taken ones first, then the others by relevance.

    taken: how many were. figures: of each stage, in the order given, and each taken position.
    """

    order: list[int]
    taken: int
    figures: list[dict[int, Figures]]


def arrange(relevance: Floats, *, places: int, stages: Sequence[Term | Rule]) -> Arrangement:
    """Take up to `places` items, best first; ties go to the earlier position. Fewer only where a strict rule says so.

    relevance: float64 (P,).
    """
    left = np.ones(len(relevance), dtype=np.bool_)
    order: list[int] = []
    figures: list[dict[int, Figures]] = [{} for _ in stages]
    for _ in range(min(places, len(relevance))):
        allowed, value = left.copy(), relevance.copy()
        for stage in stages:
            if hasattr(stage, "gains"):
                value += stage.gains()
            else:
                narrowed = allowed & stage.allowed()
                allowed = narrowed if stage.strict or narrowed.any() else allowed
        if not allowed.any():
            break
        best = int(np.where(allowed, value, -np.inf).argmax())
        for found, stage in zip(figures, stages, strict=True):
            found[best] = stage.figures(best)
            stage.take(best)
        left[best] = False
        order.append(best)
    rest = np.flatnonzero(left)
    rest = rest[np.argsort(-relevance[rest], kind="stable")]
    return Arrangement([*order, *rest.tolist()], len(order), figures)


class Fixed:
    """A bonus that does not depend on the items above. bonus: (P,), added `weight` times."""

    def __init__(self, bonus: Floats, *, weight: float) -> None:
        self._bonus = weight * bonus

    def gains(self) -> Floats:
        """The same at every place, (P,)."""
        return self._bonus

    def take(self, position: int) -> None:
        """Nothing to note."""

    def figures(self, position: int) -> Figures:
        """The bonus."""
        return {"bonus": float(self._bonus[position])}


class Mmr:
    """Maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998): minus the likeness to the nearest item above.

    likeness: cosines (P, P). weight: their (1 - lambda) / lambda.
    """

    def __init__(self, likeness: Floats, *, weight: float) -> None:
        self._likeness, self._weight = likeness, weight
        self._nearest: Floats | None = None

    def gains(self) -> Floats:
        """Minus weight times the largest cosine, (P,); 0 at the first place."""
        return np.zeros(len(self._likeness)) if self._nearest is None else -self._weight * self._nearest

    def take(self, position: int) -> None:
        """Compare with one more item."""
        row = self._likeness[position]
        self._nearest = row if self._nearest is None else np.maximum(self._nearest, row)

    def figures(self, position: int) -> Figures:
        """Cosine with the nearest item above; nothing at the first place."""
        return {} if self._nearest is None else {"likeness": float(self._nearest[position])}


class Dpp:
    """Greedy MAP of a determinantal point process (Chen, Zhang & Zhou, NeurIPS 2018, algorithm 1).

    Kernel diag(e^{r / 2w}) S diag(e^{r / 2w}) with S = (1 + cosine) / 2, so that log det = (sum of r) / w + log det S:
    an item gains weight w times the logarithm of how much it adds to the volume. likeness: cosines (P, P).
    """

    def __init__(self, likeness: Floats, *, weight: float) -> None:
        self._kernel, self._weight = (1 + likeness) / 2, weight
        self._volume = self._kernel.diagonal().copy()  # d_i^2 of the paper
        self._rows: list[Floats] = []  # the paper's c, one row for each item taken

    def gains(self) -> Floats:
        """Weight times log d_i^2, (P,)."""
        return self._weight * np.log(np.maximum(self._volume, COPY))

    def take(self, position: int) -> None:
        """Update the Cholesky rows by one, O(P) for each item taken before."""
        row = self._kernel[position].copy()
        for earlier in self._rows:
            row -= earlier[position] * earlier
        row /= np.sqrt(max(self._volume[position], COPY))
        self._rows.append(row)
        self._volume = self._volume - row**2

    def figures(self, position: int) -> Figures:
        """How much volume the item adds, 0 (a copy of items above) to 1 (nothing like them)."""
        return {"volume": float(max(self._volume[position], 0.0))}


class Calibration:
    """Calibrated recommendations (Steck, RecSys 2018): minus the KL divergence of the slate's tags from the person's.

    shares: (P, G) tags of each item with equal weights. wanted: (G,) adds up to 1. Items without tags do not count.
    """

    def __init__(self, shares: Floats, wanted: Floats, *, weight: float) -> None:
        self._shares, self._weight = shares, weight
        self._columns = np.flatnonzero(wanted > 0)
        self._wanted = wanted[self._columns]
        own = shares[:, self._columns]
        self._rows, self._places = np.nonzero(own)
        self._values = own[self._rows, self._places]
        self._tagged = shares.sum(1) > 0
        self._total = np.zeros(len(wanted))

    def gains(self) -> Floats:
        """Minus weight times the divergence in nats that the slate would have with each item, (P,).

        Only the terms of an item's own tags differ between items, so that the cost is P times the tags of an item.
        """
        total, count = self._total[self._columns], self._total.sum() + 1
        others = self._terms(total / count, self._wanted)
        own = self._terms((total[self._places] + self._values) / count, self._wanted[self._places])
        changes = np.bincount(self._rows, weights=own - others[self._places], minlength=len(self._shares))
        return -self._weight * np.where(self._tagged, others.sum() + changes, self._divergence(self._total))

    def take(self, position: int) -> None:
        """Add an item's tags to the slate's."""
        self._total = self._total + self._shares[position]

    def figures(self, position: int) -> Figures:
        """Divergence before and with the item."""
        with_item = self._divergence(self._total + self._shares[position])
        return {"divergence_before": self._divergence(self._total), "divergence": with_item}

    def _divergence(self, total: Floats) -> float:
        return float(self._terms(total[self._columns] / max(float(total.sum()), 1e-12), self._wanted).sum())

    @staticmethod
    def _terms(given: Floats, wanted: Floats) -> Floats:
        return wanted * np.log(wanted / ((1 - CALIBRATION_MIX) * given + CALIBRATION_MIX * wanted))


class TailShare:
    """At each place at least `share` of the items so far, rounded down, are from the tail.

    The prefix condition of FA*IR (Zehlike et al., CIKM 2017) without its significance test. tail: bool (P,).
    """

    strict = False

    def __init__(self, tail: NDArray[np.bool_], *, share: float) -> None:
        self._tail, self._share = tail, share
        self._placed = self._from_tail = 0

    def allowed(self) -> NDArray[np.bool_]:
        """Only the tail where the share is short, else all, (P,)."""
        return self._tail if self._short else np.ones_like(self._tail)

    def take(self, position: int) -> None:
        """Count the item."""
        self._placed += 1
        self._from_tail += bool(self._tail[position])

    def figures(self, position: int) -> Figures:
        """Whether the item is from the tail, and whether this place had to be."""
        return {"tail": float(self._tail[position]), "needed": float(self._short)}

    @property
    def _short(self) -> bool:
        return self._from_tail < int(self._share * (self._placed + 1) + 1e-9)


class Cap:
    """No group has more than `most` items in the slate. groups: bool (P, H), an item may be in several."""

    strict = True

    def __init__(self, groups: NDArray[np.bool_], *, most: int) -> None:
        self._groups, self._most = groups, most
        self._count = np.zeros(groups.shape[1], dtype=np.int64)
        self._open = np.ones(len(groups), dtype=np.bool_)

    def allowed(self) -> NDArray[np.bool_]:
        """Items in no full group, (P,)."""
        return self._open

    def take(self, position: int) -> None:
        """Count the item's groups."""
        self._count = self._count + self._groups[position]
        for group in np.flatnonzero(self._groups[position] & (self._count >= self._most)).tolist():
            self._open = self._open & ~self._groups[:, group]

    def figures(self, position: int) -> Figures:
        """The fullest of the item's groups before it, and the cap."""
        own = self._count[self._groups[position]]
        return {"fullest": float(own.max(initial=0)), "cap": float(self._most)}
