"""Items, moves and slates as people read them."""

from __future__ import annotations

import numpy as np

from client.service.answered import CardOut, MoveOut, PlacedOut, SlateOut, UnderstoodOut
from client.service.feed import View
from client.service.shop import Shop
from client.slate import Move, Placed

_STAGES = {
    "exploration": "to try something you have not settled on yet",
    "freshness": "because it is new",
    "mmr": "so that the slate is less alike",
    "dpp": "so that the slate is less alike",
    "calibration": "to match the mix of what you turn to",
    "tail_share": "to make room for less known items",
    "cap_per_tag": "because there was enough of its kind",
    "cap_per_creator": "because there was enough of its maker",
    "pool": "to fill places that others left",
}


def card(shop: Shop, item: int) -> CardOut:
    """An item of the catalogue."""
    known, year = shop.catalogue.items[item], shop.ranking.shelf.years[item]
    return CardOut(
        item=known.id,
        title=known.title,
        tags=list(known.tags),
        domain=known.domain,
        creator=known.creator,
        year=int(year) if np.isfinite(year) else None,
    )


def placed_card(view: View, placed: Placed, *, why: str | None) -> PlacedOut:
    """An item of a slate."""
    item = placed.item
    return PlacedOut(
        **card(view.shop, item).model_dump(),
        rank=placed.rank,
        score=float(view.scores[item]),
        parts={name: float(values[item]) for name, values in view.parts.items()},
        score_rank=placed.score_rank,
        moves=[_move(move) for move in placed.moves],
        why=why,
    )


def slate_answer(view: View, cards: list[PlacedOut], *, took_ms: float) -> SlateOut:
    """A whole slate."""
    match = view.found.match if view.found else None
    return SlateOut(
        slate=cards,
        understood=UnderstoodOut(
            query=view.found.text if view.found else "",
            feed=view.found is None or view.found.feed,
            by_meaning=bool(match and match.by_meaning),
            by_letters=bool(match and match.by_letters),
            corrected=match.corrected if match else {},
            unknown=list(match.unknown) if match else [],
            steering=view.asked.steering,
            ignored=list(view.steering.ignored) if view.steering else [],
        ),
        engine=view.shop.engine.kind,
        stage=view.stage,
        adapter={name: str(value) for name, value in view.shop.engine.adapter.items()},
        events=view.shop.events,
        took_ms=took_ms,
    )


def _move(move: Move) -> MoveOut:
    up = move.after < move.before
    reason = _STAGES[move.stage]
    said = f"up from {move.before} to {move.after} {reason}" if up else f"down from {move.before} to {move.after}"
    if not up:
        said += f" {reason}" if move.stage.startswith("cap") else f": others went up {reason}"
    figures = {name: float(value) for name, value in move.figures.items()}
    return MoveOut(stage=move.stage, before=move.before, after=move.after, figures=figures, said=said)
