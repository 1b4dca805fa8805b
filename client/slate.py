"""From scores to a slate: what may be shown, in which order, and why an item is not where its score would put it.

With everything off a slate is the k best by score, ties to the lower index. Each stage that is on is a term or rule of
one greedy choice (`client.diversity`). To say what each of them did, the choice is made again with one stage more each
time, in the order of `STAGES`; the moves of an item add up from its rank by score to its rank in the slate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from client.diversity import Arrangement, Calibration, Cap, Dpp, Figures, Fixed, Mmr, Rule, TailShare, Term, arrange
from client.exploration import Explorer
from client.scale import Floats, spread
from client.tags import TagTable, creators_of, item_years
from shared.catalogue import Catalogue
from shared.errors import CatalogueError, ConfigError, DataError

#: Stages in the order in which moves are told.
STAGES = ("exploration", "freshness", "mmr", "dpp", "calibration", "tail_share", "cap_per_tag", "cap_per_creator")
#: Share of the catalogue, most popular first, that is its head; the rest is the tail.
HEAD_SHARE = 0.2


@dataclass(frozen=True)
class Shelf:
    """What a slate needs to know of the items, all public.

    vectors: float32 (N, d), unit rows. popularity: (N,), any growing function of it. years: (N,), NaN unknown.
    creators: int64 (N,), -1 unknown; None where the catalogue names none.
    """

    vectors: NDArray[np.float32]
    tags: TagTable
    popularity: NDArray[np.floating]
    years: Floats
    creators: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, catalogue: Catalogue, *, vectors: NDArray[np.float32], popularity: NDArray[np.floating]) -> Shelf:
        """Tags, years and creators from the catalogue, the rest from the model. CatalogueError on another size."""
        for name, array in (("vectors", vectors), ("popularity", popularity)):
            if len(array) != len(catalogue):
                raise CatalogueError(f"found {name} of {len(array)} items; the catalogue holds {len(catalogue)}")
        tags, years = TagTable.of_catalogue(catalogue), item_years(catalogue)
        return cls(vectors, tags, popularity, years, creators_of(catalogue))

    @cached_property
    def tail(self) -> NDArray[np.bool_]:
        """Items outside the most popular fifth, bool (N,); all of them where popularity is flat."""
        outside = np.ones(len(self.popularity), dtype=np.bool_)
        if np.ptp(self.popularity) > 0:
            outside[np.argsort(-self.popularity, kind="stable")[: round(HEAD_SHARE * len(outside))]] = False
        return outside


@dataclass(frozen=True)
class SlateSettings:
    """Which stages are on, and how strongly; 0 is off. ConfigError for values that mean nothing.

    Weights count in standard deviations of the scores in the pool. pool: best items that stages choose among, and the
    most places they fill. exploration: weight of the drawn bonus. freshness: bonus of an item of the newest year in the
    catalogue, halved every `freshness_half_life` years; none for an item without a year. mmr, dpp: see
    `client.diversity`. calibration: per nat of divergence. tail_share: least share from the less popular four fifths,
    0 to 1. cap_per_tag, cap_per_creator: most items of one tag or creator; a slate may get shorter by them.
    """

    pool: int = 300
    exploration: float = 0.0
    freshness: float = 0.0
    freshness_half_life: float = 5.0
    mmr: float = 0.0
    dpp: float = 0.0
    calibration: float = 0.0
    tail_share: float = 0.0
    cap_per_tag: int = 0
    cap_per_creator: int = 0

    def __post_init__(self) -> None:
        for setting in fields(self):
            value, least = getattr(self, setting.name), 1 if setting.name == "pool" else 0
            if not np.isfinite(value) or value < least:
                raise ConfigError(f"found slate.{setting.name} = {value}; expected a number of at least {least}")
        if self.tail_share > 1:
            raise ConfigError(f"found slate.tail_share = {self.tail_share}; expected 0 to 1")
        if not self.freshness_half_life:
            raise ConfigError("found slate.freshness_half_life = 0; expected years above 0")


@dataclass(frozen=True)
class Person:
    """What stages need to know of the person. None: not known, and the stage that asks for it does nothing.

    wanted: (G,) tag distribution of the history, adds up to 1, such as `interests.tag_shares`.
    """

    wanted: Floats | None = None
    explorer: Explorer | None = None


@dataclass(frozen=True)
class Move:
    """One stage moved an item from one rank to another, both from 1.

    stage: one of `STAGES`, or `pool` for an item that no stage considered and that gave way to others, or took the
    place of ones that a cap left out. figures: the stage's numbers for this item where it was taken.
    """

    stage: str
    before: int
    after: int
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class Placed:
    """An item of the slate. score_rank: its rank by score alone among all items that may be shown."""

    item: int
    rank: int
    score_rank: int
    moves: tuple[Move, ...] = ()


def build_slate(
    scores: NDArray[np.floating],
    *,
    k: int,
    shelf: Shelf,
    settings: SlateSettings = SlateSettings(),
    allowed: NDArray[np.bool_] | None = None,
    person: Person = Person(),
) -> list[Placed]:
    """The slate, best first: k items, or fewer where no more are left or caps allow no more.

    scores: (N,); -inf leaves an item out. allowed: bool (N,), from `selection.allowed_items`; None allows all. Stages
    that are on fill the first `settings.pool` places; further ones go by score. DataError for scores that are not
    numbers or of another size, ConfigError for a cap per creator where creators are not known.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (len(shelf.tags),) or np.isnan(values).any() or (values == np.inf).any():
        raise DataError(f"found scores of shape {values.shape} or not finite; expected ({len(shelf.tags)},) numbers")
    if settings.cap_per_creator and shelf.creators is None:
        raise ConfigError("found slate.cap_per_creator, but the catalogue names no creators; expected 0, which is off")
    may = values > -np.inf if allowed is None else allowed & (values > -np.inf)
    wanted = max(0, k)
    active = [name for name in STAGES if getattr(settings, name) and _known(name, shelf, person)]
    if not active:
        return [Placed(item, rank, rank) for rank, item in enumerate(best_items(values, may, wanted).tolist(), start=1)]
    pool, ranks = _pool(values, may, settings=settings, tail=shelf.tail if settings.tail_share else None, k=wanted)
    relevance = values[pool] / spread(values[pool])
    makers = _makers(pool, shelf=shelf, settings=settings, person=person)
    positions = np.arange(len(pool))
    moves: list[list[Move]] = [[] for _ in pool]
    last = Arrangement([], 0, [])
    for count in range(1, len(active) + 1):
        stages = [makers[name]() for name in active[:count]]
        last = arrange(relevance, places=min(wanted, settings.pool), stages=stages)
        now = np.empty(len(pool), dtype=np.int64)
        now[last.order] = np.arange(len(pool))
        for position in np.flatnonzero(now != positions).tolist():
            figures = last.figures[count - 1].get(position, {})
            before, after = int(ranks[positions[position]]), int(ranks[now[position]])
            moves[position].append(Move(active[count - 1], before, after, figures))
        positions = now
    placed = [
        Placed(int(pool[position]), rank, int(ranks[position]), tuple(moves[position]))
        for rank, position in enumerate(last.order[: last.taken], start=1)
    ]
    return placed + _by_score(values, may, shelf=shelf, settings=settings, placed=placed, missing=wanted - len(placed))


def best_items(scores: NDArray[np.floating], may: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """The `count` best of the allowed items, best first, ties to the lower index; int64, O(N) and not a full sort."""
    index = np.flatnonzero(may)
    values = scores[index]
    if count < len(index):
        least = np.partition(values, len(values) - count)[len(values) - count] if count else np.inf
        above, level = np.flatnonzero(values > least), np.flatnonzero(values == least)
        kept = np.concatenate([above, level[: count - len(above)]])
        index, values = index[kept], values[kept]
    return index[np.lexsort((index, -values))]


def _known(stage: str, shelf: Shelf, person: Person) -> bool:
    """Whether there is anything that a stage could go by."""
    known = {
        "exploration": person.explorer is not None,
        "freshness": bool(np.isfinite(shelf.years).any()),
        "calibration": person.wanted is not None and bool(person.wanted.any()),
        "cap_per_tag": len(shelf.tags.names) > 0,
    }
    return known.get(stage, True)


def _pool(
    values: Floats, may: NDArray[np.bool_], *, settings: SlateSettings, tail: NDArray[np.bool_] | None, k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The best items and, for a tail share, enough of the tail, best first; and their ranks by score."""
    pool = best_items(values, may, settings.pool)
    ranks = np.arange(1, len(pool) + 1)
    if tail is None:
        return pool, ranks
    rest = may & tail
    rest[pool] = False
    more = best_items(values, rest, int(np.ceil(settings.tail_share * min(k, settings.pool))))
    tied = [int((may[:item] & (values[:item] == values[item])).sum()) for item in more.tolist()]
    further = [1 + int((may & (values > values[item])).sum()) + ties for item, ties in zip(more, tied, strict=True)]
    return np.concatenate([pool, more]), np.concatenate([ranks, np.array(further, dtype=np.int64)])


def _makers(
    pool: NDArray[np.int64], *, shelf: Shelf, settings: SlateSettings, person: Person
) -> dict[str, Callable[[], Term | Rule]]:
    """How to make each stage anew, by name; each holds what it has taken."""
    rows = shelf.vectors[pool].astype(np.float64)
    likeness = rows @ rows.T if settings.mmr or settings.dpp else np.zeros((0, 0))
    shares = shelf.tags.shares(pool) if settings.calibration or settings.cap_per_tag else np.zeros((0, 0))
    age = np.nanmax(shelf.years, initial=-np.inf) - shelf.years[pool]
    fresh = np.nan_to_num(0.5 ** (age / settings.freshness_half_life))
    bonus = person.explorer.bonus(pool) if person.explorer else np.zeros(len(pool))
    wanted = np.zeros(0) if person.wanted is None else person.wanted
    groups = np.zeros((0, 0), dtype=np.bool_)
    if settings.cap_per_creator and shelf.creators is not None:
        known = np.unique(shelf.creators[pool])
        groups = shelf.creators[pool][:, None] == known[known >= 0]
    return {
        "exploration": lambda: Fixed(bonus, weight=settings.exploration),
        "freshness": lambda: Fixed(fresh, weight=settings.freshness),
        "mmr": lambda: Mmr(likeness, weight=settings.mmr),
        "dpp": lambda: Dpp(likeness, weight=settings.dpp),
        "calibration": lambda: Calibration(shares, wanted, weight=settings.calibration),
        "tail_share": lambda: TailShare(shelf.tail[pool], share=settings.tail_share),
        "cap_per_tag": lambda: Cap(shares > 0, most=settings.cap_per_tag),
        "cap_per_creator": lambda: Cap(groups, most=settings.cap_per_creator),
    }


def _by_score(
    values: Floats,
    may: NDArray[np.bool_],
    *,
    shelf: Shelf,
    settings: SlateSettings,
    placed: list[Placed],
    missing: int,
) -> list[Placed]:
    """Items after those the stages placed, in the order of their scores, as far as the caps allow."""
    if missing <= 0:
        return []
    ranked = best_items(values, may, int(may.sum()))
    taken = {one.item for one in placed}
    room = _Room(shelf, settings) if settings.cap_per_tag or settings.cap_per_creator else None
    if room is not None:
        for one in placed:
            room.take(one.item)
    found: list[Placed] = []
    for score_rank, item in enumerate(ranked.tolist(), start=1):
        if item not in taken and (room is None or room.has(item)):
            if room is not None:
                room.take(item)
            rank = len(placed) + len(found) + 1
            moves = (Move("pool", score_rank, rank),) if rank != score_rank else ()
            found.append(Placed(item, rank, score_rank, moves))
        if len(found) == missing:
            break
    return found


class _Room:
    """What the caps still allow, one item at a time."""

    def __init__(self, shelf: Shelf, settings: SlateSettings) -> None:
        self._shelf, self._settings = shelf, settings
        self._tags: Counter[int] = Counter()
        self._creators: Counter[int] = Counter()

    def has(self, item: int) -> bool:
        most = self._settings.cap_per_tag
        if most and any(self._tags[tag] >= most for tag in self._shelf.tags.of_item(item).tolist()):
            return False
        most, creator = self._settings.cap_per_creator, self._creator(item)
        return not most or creator < 0 or self._creators[creator] < most

    def take(self, item: int) -> None:
        self._tags.update(self._shelf.tags.of_item(item).tolist())
        self._creators[self._creator(item)] += 1

    def _creator(self, item: int) -> int:
        return -1 if self._shelf.creators is None else int(self._shelf.creators[item])
