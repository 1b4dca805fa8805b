"""Why an item is shown: the exact split of its score, the events behind it, a sentence, and a slate without one event.

Ranks depend on differences only, so a part *carries* an item as far as it lies above the part's mean over the items
that compete with it. `Explanation.exact` says what may be relied on: each part is exact in itself (parts add up to the
score), and its split over events is `exact`, `apportioned` (adds up by a stated rule, see `client.evidence`) or `none`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.evidence import EventShares, Reading, event_shares
from client.sentence import Facts, tell
from client.store import History
from shared.catalogue import Catalogue
from shared.errors import DataError

#: A part or an event is named from this part of all that speaks for the item.
NAMED = 0.25
#: Events named in a sentence.
EVENTS = 2
#: Items of rank up to this part of the catalogue are called popular.
POPULAR = 0.2


@dataclass(frozen=True)
class EventShare:
    """One past event's share in a score. position: its place in the history, oldest 0. estimate: in the prior's q."""

    position: int
    item_id: str
    title: str
    content: float
    prior: float
    estimate: float

    @property
    def total(self) -> float:
        """Share in the score."""
        return self.content + self.prior


@dataclass(frozen=True)
class Asked:
    """What the person asked for: a search, boosted tags, an instruction as understood (`steering.describe`)."""

    query: str = ""
    boosted: Sequence[str] = ()
    steering: str = ""


@dataclass(frozen=True)
class Explanation:
    """Why an item has its score.

    parts: adds up to `score`. above: each part less its mean over the competing items. events: most important first,
    those that add nothing left out. floor: the prior's part that no event carries. exact: what each part's split over
    events is, see the module.
    """

    item: int
    item_id: str
    title: str
    score: float
    parts: dict[str, float]
    above: dict[str, float]
    events: tuple[EventShare, ...]
    floor: float
    exact: dict[str, str]
    sentence: str


def explain(
    item: int,
    *,
    parts: Mapping[str, NDArray[np.floating]],
    reading: Reading,
    history: History,
    catalogue: Catalogue,
    asked: Asked = Asked(),
) -> Explanation:
    """Explain one item's score.

    parts: each (N,), adding up to the scores; the sentence knows content, adapter, popularity, prior, tail, query,
    interests and steering. Entries that are not finite do not compete. DataError for one of the item itself.
    """
    own = {name: float(values[item]) for name, values in parts.items()}
    for name, value in own.items():
        if not np.isfinite(value):
            raise DataError(f"found part {name!r} = {value} of item {item}; expected an item that is ranked")
    means = {name: float(values[np.isfinite(values)].mean(dtype=np.float64)) for name, values in parts.items()}
    above = {name: value - means[name] for name, value in own.items()}
    shares = event_shares(reading, history, item)
    events = _events(shares, history, catalogue)
    facts = _facts(item, above=above, events=events, reading=reading, catalogue=catalogue, asked=asked)
    return Explanation(
        item=item,
        item_id=catalogue.items[item].id,
        title=catalogue.items[item].title,
        score=sum(own.values()),
        parts=own,
        above=above,
        events=tuple(events),
        floor=shares.floor,
        exact={name: _exactness(name, reading) for name in own},
        sentence=tell(facts),
    )


def _exactness(part: str, reading: Reading) -> str:
    if part == "content":
        return "apportioned" if reading.sharpness else "exact"
    return "apportioned" if part == "prior" else "none"


def _events(shares: EventShares, history: History, catalogue: Catalogue) -> list[EventShare]:
    columns = (shares.positions, shares.content, shares.prior, shares.estimate)
    found = []
    for position, content, prior, estimate in zip(*(column.tolist() for column in columns), strict=True):
        known = catalogue.items[int(history.items[position])]
        if content or prior:
            found.append(EventShare(position, known.id, known.title, content, prior, estimate))
    return sorted(found, key=lambda event: (-abs(event.total), -event.position))


def _facts(
    item: int,
    *,
    above: Mapping[str, float],
    events: Sequence[EventShare],
    reading: Reading,
    catalogue: Catalogue,
    asked: Asked,
) -> Facts:
    lifted = sum(value for value in above.values() if value > 0)
    carriers = [name for name, value in above.items() if value > 0 and value >= NAMED * lifted]
    carriers.sort(key=lambda name: -above[name])
    usual = sum(event.estimate for event in events) > float(reading.share[item])  # likelier than for anybody
    counted = {"content": "content" in carriers, "prior": "prior" in carriers and usual}
    behind = {event.position: counted["content"] * event.content + counted["prior"] * event.prior for event in events}
    titles = {event.position: event.title for event in events}
    after = max(events, key=lambda event: event.estimate, default=None)
    near = max(events, key=lambda event: event.content, default=None)
    rank = 1 + int((reading.share > reading.share[item]).sum())
    popular = rank <= POPULAR * len(catalogue) and float(np.ptp(reading.share)) > 0
    own_tags = {tag.casefold() for tag in catalogue.items[item].tags}
    return Facts(
        carriers=carriers,
        because=_strongest(behind, titles),
        usual_after=after.title if usual and after is not None and after.estimate > 0 else "",
        alike=near.title if near is not None and near.content > 0 else "",
        popular=(rank, len(catalogue)) if popular else None,
        query=asked.query,
        boosted=[tag for tag in asked.boosted if tag.casefold() in own_tags],
        steering=asked.steering,
    )


def _strongest(behind: Mapping[int, float], titles: Mapping[int, str]) -> list[str]:
    """Titles of the events that carry most, at most `EVENTS`, each once."""
    total = sum(value for value in behind.values() if value > 0)
    order = sorted(behind, key=lambda position: (-behind[position], -position))
    named = [titles[position] for position in order if behind[position] > 0 and behind[position] >= NAMED * total]
    return list(dict.fromkeys(named))[:EVENTS]


# --- what would have been ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counterfactual:
    """A slate with and without one past event.

    item: of the event. before, after: the slates, item indices best first. appeared: items that only the slate without
    the event shows, vanished: only the one with it; (item, rank) each. moved: (item, rank before, rank after). The
    event's own item may appear, since without the event it was not seen.
    """

    item: int
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def appeared(self) -> list[tuple[int, int]]:
        """What would have been shown."""
        return [(item, rank) for rank, item in enumerate(self.after, start=1) if item not in self.before]

    @property
    def vanished(self) -> list[tuple[int, int]]:
        """What would not have been shown."""
        return [(item, rank) for rank, item in enumerate(self.before, start=1) if item not in self.after]

    @property
    def moved(self) -> list[tuple[int, int, int]]:
        """What would have stood elsewhere."""
        ranks = {item: rank for rank, item in enumerate(self.after, start=1)}
        both = [(item, rank, ranks.get(item, rank)) for rank, item in enumerate(self.before, start=1)]
        return [one for one in both if one[1] != one[2]]


def without_event(history: History, position: int, *, slate: Callable[[History], Sequence[int]]) -> Counterfactual:
    """Make the slate again from the history without the event at `position` (oldest 0), everything else alike.

    slate: the whole way from a history to item indices, with any randomness fixed. It gets full histories, so that an
    older event moves into the window that the ranker reads. DataError for a position outside the history.
    """
    if not 0 <= position < len(history):
        raise DataError(f"found event {position} of a history of {len(history)}; expected one of its places, oldest 0")
    kept = np.ones(len(history), dtype=np.bool_)
    kept[position] = False
    before, after = tuple(slate(history)), tuple(slate(history[kept]))
    return Counterfactual(int(history.items[position]), before, after)
