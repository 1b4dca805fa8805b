"""What lists of recommended items are like, beyond whether they held the target: per-user arrays first.

HR@k, NDCG@k and MRR are functions of ranks and lie in `shared.metrics`. Here the input is what people are shown: lists,
int64 (U, k), best first, padded with -1 where a catalogue ran out. Measures of one list are arrays (U,), NaN where a
list does not determine them; measures of all lists together are one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from client.store import History
from shared.catalogue import Catalogue
from shared.errors import DataError
from simulations.quality.classical import positives

Floats = NDArray[np.float64]
Lists = NDArray[np.int64]

#: Share of the catalogue, most popular first, that is called its head; the rest is the tail.
HEAD_SHARE = 0.2
#: Part of the history's distribution mixed into the list's, so that the divergence stays finite (Steck 2018).
CALIBRATION_MIX = 0.01


@dataclass(frozen=True)
class Touched:
    """How many people had touched each item when training ended.

    people: int64 (N,), devices with a positive training event on the item. devices: those with any, at least 1.
    """

    people: NDArray[np.int64]
    devices: int

    @classmethod
    def of(cls, histories: Sequence[History], *, items: int) -> Touched:
        """Count the events of training histories."""
        people = np.zeros(items, dtype=np.int64)
        wanted = [np.unique(positives(history)) for history in histories]
        for once in wanted:
            people[once] += 1
        return cls(people, max(1, sum(len(once) > 0 for once in wanted)))

    @property
    def tail(self) -> NDArray[np.bool_]:
        """Items (N,) outside the most popular fifth of the catalogue; ties go by catalogue order."""
        head = np.argsort(-self.people, kind="stable")[: round(HEAD_SHARE * len(self.people))]
        tail = np.ones(len(self.people), dtype=np.bool_)
        tail[head] = False
        return tail


# --- of one list -------------------------------------------------------------------------------------------


def popularity(lists: Lists, touched: Touched) -> Floats:
    """Mean share of people (U,) who had already touched a shown item (Abdollahpouri, Burke & Mobasher, RecSys 2017)."""
    return _list_means(touched.people / touched.devices, lists)


def novelty(lists: Lists, touched: Touched) -> Floats:
    """Mean self-information (U,) of the shown items in bits: -log2 of the share of people who had touched them.

    Zhou et al., PNAS 2010; Vargas & Castells, RecSys 2011. An item that nobody has touched counts as one that a
    single person has.
    """
    return _list_means(-np.log2(np.maximum(touched.people, 1) / touched.devices), lists)


def tail_share(lists: Lists, touched: Touched) -> Floats:
    """Share of each list (U,) that lies in the tail, the less popular four fifths of the catalogue."""
    return _list_means(touched.tail.astype(np.float64), lists)


def diversity(lists: Lists, vectors: NDArray[np.float32]) -> Floats:
    """Mean of 1 - cosine over the pairs of each list (U,); NaN for lists of one item (Ziegler et al., WWW 2005).

    vectors: (N, d), unit length, such as `ItemVectors.plain`.
    """
    there = lists >= 0
    rows = vectors[np.maximum(lists, 0)].astype(np.float64) * there[..., None]  # (U, k, d)
    pairs = there.sum(1) * (there.sum(1) - 1) / 2  # (U,)
    alike = ((rows.sum(1) ** 2).sum(1) - (rows**2).sum((1, 2))) / 2  # (U,) sum of the pairs' cosines
    return np.where(pairs > 0, 1 - alike / np.maximum(pairs, 1), np.nan)


def tag_shares(catalogue: Catalogue) -> Floats | None:
    """Tags of each item with equal weights, (N, G): rows sum to 1, or to 0 without tags. None when no item has any."""
    names = sorted({tag for item in catalogue.items for tag in item.tags})
    if not names:
        return None
    place = {name: column for column, name in enumerate(names)}
    shares = np.zeros((len(catalogue), len(names)))
    for row, item in enumerate(catalogue.items):
        for tag in set(item.tags):
            shares[row, place[tag]] = 1 / len(set(item.tags))
    return shares


def miscalibration(lists: Lists, histories: Sequence[History], shares: Floats) -> Floats:
    """KL divergence (U,) in nats of the list's tags from the history's; 0 is perfect calibration (Steck, RecSys 2018).

    histories: what each user's list was made from, one per row. shares: `tag_shares`. Items without tags are left
    out; NaN for a user whose history or list has no tags at all.
    """
    wanted = np.stack([_distribution(positives(history), shares) for history in histories])  # (U, G)
    given = np.stack([_distribution(row[row >= 0], shares) for row in lists])
    mixed = (1 - CALIBRATION_MIX) * given + CALIBRATION_MIX * wanted
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(wanted > 0, wanted * np.log(wanted / mixed), 0.0)
    known = (wanted.sum(1) > 0) & (given.sum(1) > 0)
    return np.where(known, terms.sum(1), np.nan)


# --- of all lists ------------------------------------------------------------------------------------------


def coverage(lists: Lists, *, items: int) -> float:
    """Share of the catalogue shown to anybody (Ge, Delgado-Battenfeld & Jannach, RecSys 2010)."""
    return len(np.unique(lists[lists >= 0])) / items


def gini(lists: Lists, *, items: int) -> float:
    """Gini index of how often each item of the catalogue is shown: 0 all alike, towards 1 a few get everything.

    Fleder & Hosanagar, Management Science 2009; 0 when nothing is shown.

    >>> gini(np.array([[0, 1], [0, 1]]), items=4)
    0.5
    """
    shown = np.sort(np.bincount(lists[lists >= 0], minlength=items))
    places = 2 * np.arange(1, items + 1) - items - 1
    return float((places * shown).sum() / max(1, items * shown.sum()))


# --- of all users ------------------------------------------------------------------------------------------


def share_behind(ranks: ArrayLike, competitors: ArrayLike) -> Floats:
    """Share of the unseen items ranked behind the target (U,): AUC with one relevant item, 0.5 for a random order.

    competitors: unseen items apart from the target, (U,). A target without competitors scores 1.

    >>> share_behind([1, 3], [4, 4]).tolist()
    [1.0, 0.5]
    """
    others = np.asarray(competitors, dtype=np.float64)
    return 1 - (np.asarray(ranks, dtype=np.float64) - 1) / np.maximum(others, 1)


def worst_tenth(values: ArrayLike) -> float:
    """Mean over the tenth of users (at least one) with the lowest values.

    With one relevant item each, NDCG@10 and HR@10 of the worst tenth are 0 for every model. Use `share_behind`, which
    tells a target in the middle of the catalogue from one at its end.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if not len(ordered):
        raise DataError("found no users; expected at least one")
    return float(ordered[: max(1, len(ordered) // 10)].mean())


def _list_means(values: Floats, lists: Lists) -> Floats:
    """Mean of per-item values (N,) over each list; NaN for an empty one."""
    there = lists >= 0
    totals = np.where(there, values[np.maximum(lists, 0)], 0.0).sum(1)
    return np.where(there.any(1), totals / np.maximum(there.sum(1), 1), np.nan)


def _distribution(items: NDArray[np.int64], shares: Floats) -> Floats:
    """Mean tag distribution (G,) of the items that have tags; zeros when none has."""
    total = shares[items].sum(0)
    return total / max(total.sum(), 1e-12)
