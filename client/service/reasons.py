"""Why an item is where it is, and what the slate would be without one event, for one person."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.explain import Explanation, explain, without_event
from client.sentence import quoted
from client.service.answered import CounterfactualOut, EvidenceOut, ExplanationOut, HistoryOut, RankOut
from client.service.asked import ExplainIn, RecommendIn
from client.service.cards import card
from client.service.feed import Feed, View, item_index
from client.service.shop import Shop
from client.store import History, Role
from shared.errors import DataError
from shared.schema import EventKind

#: Items named in the sentence of a counterfactual.
NAMED = 3


@dataclass(frozen=True)
class Numbered:
    """A history with the number that each of its events has in the store, oldest first."""

    history: History
    numbers: list[int]


def newest_numbered(shop: Shop, count: int) -> Numbered:
    """The last `count` events on items of the catalogue."""
    history = shop.journal.newest(count)
    numbers: list[int] = []
    query = "SELECT seq, item FROM events WHERE device = 0 AND seq < ? ORDER BY seq DESC LIMIT ?"
    last = 2**62
    while len(numbers) < len(history) and (page := shop.journal.store.read(query, (last, count))):
        numbers += [seq for seq, item in page if item in shop.catalogue]
        last = page[-1][0]
    numbers = numbers[: len(history)][::-1]
    return Numbered(history[len(history) - len(numbers) :], numbers)


def history_page(shop: Shop, *, limit: int, before: int | None) -> list[HistoryOut]:
    """Past events, newest first, those older than number `before`."""
    query = (
        "SELECT seq, item, time, kind, role, value FROM events WHERE device = 0 AND seq < ? ORDER BY seq DESC LIMIT ?"
    )
    rows = shop.journal.store.read(query, (2**62 if before is None else before, limit))
    return [
        HistoryOut(
            seq=seq,
            item=item,
            title=shop.catalogue.items[shop.catalogue.index(item)].title if item in shop.catalogue else item,
            kind=EventKind(kind).label,
            time=time,
            value=value,
            learned=role == Role.TRAIN,
        )
        for seq, item, time, kind, role, value in rows
    ]


def sentence_of(view: View, item: int) -> str:
    """One plain sentence about an item of a view."""
    return _explained(view, item, view.state.past.history()).sentence


def explained(feed: Feed, asked: ExplainIn) -> ExplanationOut:
    """Explain one item. CatalogueError for an unknown one, DataError for an event that is not there."""
    shop = feed.person.shop
    item = item_index(shop, asked.item)
    request = RecommendIn(k=asked.k, query=asked.query, steer=asked.steer, like=asked.like)
    view = feed.view(request, whole=True)
    recent = newest_numbered(shop, shop.engine.length)
    found = _explained(view, item, recent.history)
    competing = view.may.copy()
    competing[item] = True
    return ExplanationOut(
        **card(shop, item).model_dump(),
        score=found.score,
        rank=1 + int((view.scores[competing] > view.scores[item]).sum()),
        parts=found.parts,
        above=found.above,
        exact=found.exact,
        events=[
            EvidenceOut(
                seq=recent.numbers[one.position],
                item=one.item_id,
                title=one.title,
                share=one.total,
                content=one.content,
                prior=one.prior,
            )
            for one in found.events
        ],
        sentence=found.sentence,
        counterfactual=None if asked.without_event is None else _without(feed, request, asked.without_event),
    )


def _explained(view: View, item: int, history: History) -> Explanation:
    competing = view.may.copy()
    competing[item] = True
    reading = view.state.reading()
    if view.weights is not None:
        reading = reading.weighted(view.weights)
    parts = {name: np.where(competing, values, np.nan) for name, values in view.parts.items()}
    return explain(item, parts=parts, reading=reading, history=history, catalogue=view.shop.catalogue, asked=view.asked)


def _without(feed: Feed, request: RecommendIn, number: int) -> CounterfactualOut:
    shop = feed.person.shop
    recent = newest_numbered(shop, shop.engine.length + 1)  # without one event the one before them comes in
    if number not in recent.numbers[-shop.engine.length :]:
        raise DataError(
            f"found event {number}; expected one of the newest {shop.engine.length}, which are all that a ranking reads"
        )
    position = recent.numbers.index(number)
    gone = int(recent.history.items[position])
    alone = shop.journal.store.read(
        "SELECT COUNT(*) FROM events WHERE device = 0 AND item = ?", (shop.catalogue.items[gone].id,)
    )

    def slate(history: History) -> list[int]:
        unseen = gone if len(history) < len(recent.history) and alone[0][0] == 1 else None
        view = feed.view(request, state=shop.engine.imagined(history), unseen=unseen)
        return [placed.item for placed in feed.slate(view, request)]

    found = without_event(recent.history, position, slate=slate)
    title = shop.catalogue.items[gone].title
    return CounterfactualOut(
        seq=number,
        item=shop.catalogue.items[gone].id,
        title=title,
        appeared=[_ranked(shop, item, rank) for item, rank in found.appeared],
        vanished=[_ranked(shop, item, rank) for item, rank in found.vanished],
        said=_said(shop, title, [one for one in found.appeared if one[0] != gone]),
    )


def _ranked(shop: Shop, item: int, rank: int) -> RankOut:
    known = shop.catalogue.items[item]
    return RankOut(item=known.id, title=known.title, rank=rank)


def _said(shop: Shop, title: str, appeared: list[tuple[int, int]]) -> str:
    if not appeared:
        return f"Without {quoted(title)} you would have seen the same items."
    named = [quoted(shop.catalogue.items[item].title) for item, _ in appeared[:NAMED]]
    more = f" and {len(appeared) - NAMED} more" if len(appeared) > NAMED else ""
    return f"Without {quoted(title)} you would have seen {', '.join(named)}{more}."
