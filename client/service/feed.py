"""From what is asked to a slate: the parts of the score, what may be shown, and the stages that shape it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from client.engine import Parts, State
from client.events import unknown_item
from client.explain import Asked
from client.exploration import Explorer
from client.interests import interest_scores, muted_items, tag_shares
from client.scale import spread
from client.search import Found
from client.selection import Selection, allowed_items
from client.service.asked import RecommendIn
from client.service.person import Person
from client.service.shop import Shop
from client.service.weights import mixed
from client.slate import Person as Shopper
from client.slate import Placed, SlateSettings, build_slate
from client.steering import Steering, describe, steer

if TYPE_CHECKING:
    from shared.model import Stage

#: What an item at hand means when nothing else is said.
MORE_LIKE_THIS = "more like this"
#: How fast the time that the adapter takes is learned, and forgotten while it is not asked.
PACE = 0.2
#: Largest weight of a stage that a setting of 1 stands for, in standard deviations of the scores.
STRONGEST = 1.0


@dataclass(frozen=True)
class View:
    """One ranking of the whole catalogue: everything that a slate and its explanation are made from.

    parts: of all scores, by name. may: bool (N,), items that may be shown. asked: for the sentence of an explanation.
    """

    shop: Shop
    state: State
    parts: Parts
    scores: NDArray[np.float32]
    may: NDArray[np.bool_]
    stage: Stage
    asked: Asked
    found: Found | None = None
    steering: Steering | None = None
    weights: NDArray[np.float32] | None = None


@dataclass
class Pace:
    """Milliseconds that the scores of a stage took lately, 0 unknown."""

    adapter: float = 0.0

    def stage(self, deadline: float | None) -> Stage:
        """The stage that a deadline in milliseconds leaves time for. One that is left out is tried again later."""
        if deadline is None or self.adapter <= deadline:
            return "adapter"
        self.adapter *= 1 - PACE
        return "prior"

    def took(self, milliseconds: float) -> None:
        """The adapter's stage took so long."""
        self.adapter += (PACE if self.adapter else 1.0) * (milliseconds - self.adapter)


@dataclass
class Feed:
    """Ranks for one person."""

    person: Person
    pace: Pace = field(default_factory=Pace)

    def view(
        self, asked: RecommendIn, *, state: State | None = None, unseen: int | None = None, whole: bool = False
    ) -> View:
        """Score the catalogue for what is asked: all of it, or in a large one what the state proposes.

        state: another one than now, for what would have been. unseen: item that this state has not seen. whole: score
        everything, also in a large catalogue.
        Raises CatalogueError for an unknown item, tag or domain, DataError for words that are too long.
        """
        shop = self.person.shop
        state = state or shop.engine.now
        edits = known_edits(shop)
        may = _allowed(shop, asked, edits, unseen=unseen)
        stage = self.pace.stage(asked.deadline_ms)
        started = time.perf_counter()
        whole = whole or bool(asked.query or asked.steer or asked.like or edits)  # these find what nobody proposes
        items = None if whole else state.candidates(stage=stage, allowed=may)
        parts = dict(state.scores(stage=stage, items=items))
        if stage == "adapter":
            self.pace.took(1e3 * (time.perf_counter() - started))
        if items is not None:
            parts = {name: _scattered(values, items, len(may)) for name, values in parts.items()}
            proposed = np.zeros(len(may), dtype=np.bool_)
            proposed[items] = True
            may = may & proposed
        popularity = shop.engine.popularity
        weights = self.person.weights.values if self.person.preferences.personal else None
        if weights is not None:
            parts = mixed(parts, weights, popularity)
        if self.person.preferences.tail:
            parts["tail"] = -np.float32(self.person.preferences.tail) * popularity
        base = _total(parts)
        if edits:
            parts["interests"] = interest_scores(shop.tags, edits, strength=spread(base))
        found, steering = None, None
        if asked.query:
            found = shop.ranking.searcher.search(asked.query, scores=base)
            parts["query"] = found.part
        if words := asked.steer or (MORE_LIKE_THIS if asked.like is not None else ""):
            item = None if asked.like is None else item_index(shop, asked.like)
            steering = steer(
                words, scores=base, searcher=shop.ranking.searcher, years=shop.ranking.shelf.years, item=item
            )
            parts["steering"] = steering.part
        if asked.like is not None:
            may[shop.catalogue.index(asked.like)] = False
        said = Asked(
            query=found.text if found and not found.feed else "",
            boosted=[tag for tag, factor in edits.items() if factor > 1],
            steering=describe(steering) if steering else "",
        )
        return View(shop, state, parts, _total(parts), may, stage, said, found, steering, weights)

    def slate(self, view: View, asked: RecommendIn) -> list[Placed]:
        """The slate of a view."""
        settings = slate_settings(self.person, asked)
        shop = view.shop
        shopper = Shopper()
        if settings.calibration:
            shopper = replace(shopper, wanted=tag_shares(view.state.past.history(), shop.tags))
        if settings.exploration:
            seed = view.state.past.count  # one draw until the next event, so that a slate can be made again
            shopper = replace(shopper, explorer=Explorer.drawn(shop.ranking.directions, shop.ranking.taste, seed=seed))
        return build_slate(
            view.scores, k=asked.k, shelf=shop.ranking.shelf, settings=settings, allowed=view.may, person=shopper
        )


def slate_settings(person: Person, asked: RecommendIn) -> SlateSettings:
    """What the request says of each stage, else what the person's settings say."""
    mine = person.preferences
    chosen = {
        "mmr": STRONGEST * mine.diversity,
        "calibration": STRONGEST * mine.calibration,
        "freshness": STRONGEST * mine.freshness,
        "exploration": STRONGEST * mine.exploration,
        "cap_per_tag": mine.per_tag_cap,
        "cap_per_creator": mine.per_creator_cap if person.shop.ranking.shelf.creators is not None else 0,
    }
    return SlateSettings(**{**chosen, **asked.slate.model_dump(exclude_none=True)})


def known_edits(shop: Shop) -> dict[str, float]:
    """The person's factors of tags that this catalogue has."""
    return {tag: factor for tag, factor in shop.journal.interests().items() if tag in shop.tags}


def item_index(shop: Shop, item: str) -> int:
    """Position of an item id; CatalogueError with what looks like it."""
    if item not in shop.catalogue:
        raise unknown_item(item, shop.catalogue)
    return shop.catalogue.index(item)


def _allowed(shop: Shop, asked: RecommendIn, edits: dict[str, float], *, unseen: int | None) -> NDArray[np.bool_]:
    refused = [shop.catalogue.index(item) for item, _, _ in shop.journal.verdicts() if item in shop.catalogue]
    candidates = None
    if asked.candidates is not None:
        candidates = [item_index(shop, item) for item in asked.candidates]
    selection = Selection(
        tags=asked.tags,
        without_tags=asked.without_tags,
        domains=asked.domains,
        candidates=candidates,
        not_interested=refused,
        seen="show",  # whoever keeps a million events is not asked for all of them
    )
    may = allowed_items(shop.catalogue, shop.tags, selection=selection)
    if asked.seen != "show":
        seen = shop.journal.seen()
        if unseen is not None:
            seen[unseen] = False
        may &= ~seen
    if asked.seen == "fresh":
        may[shop.journal.shown()] = False
    return may & ~muted_items(shop.tags, edits) if edits else may


def _scattered(values: NDArray[np.float32], items: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """Values of some items among all `count`, 0 elsewhere."""
    spread_out = np.zeros(count, dtype=np.float32)
    spread_out[items] = values
    return spread_out


def _total(parts: Parts) -> NDArray[np.float32]:
    values = iter(parts.values())
    total = next(values).copy()
    for part in values:
        total += part
    return total
