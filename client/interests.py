"""Interests a person can read and edit: which tags the history leans to, and what muting or boosting one does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.scale import Floats
from client.store import History
from client.tags import TagTable
from shared.errors import ConfigError
from shared.schema import POSITIVE_KINDS

#: Events after which an event counts half. Longer than the ranker's: interests are what a person would call their own.
HALF_LIFE = 20.0
#: Events' worth of evidence that a person's tags are the catalogue's.
PULL = 5.0
#: Largest factor of an edit.
MOST = 8.0
_POSITIVE = [int(kind) for kind in POSITIVE_KINDS]


@dataclass(frozen=True)
class Interest:
    """One tag of a person.

    share: its part of the history's tags, recent events counting more. usual: its part of the catalogue's. weight: how
    many times the usual it is, pulled towards 1 while there are few events. edit: the person's factor, 1 if none, 0 if
    muted.
    """

    tag: str
    share: float
    usual: float
    weight: float
    edit: float = 1.0


def recency(history: History, *, half_life: float = HALF_LIFE) -> tuple[NDArray[np.int64], Floats]:
    """Items of the events that say a person wanted them, int64 (n,), and what each counts, newest 1, float64 (n,)."""
    items = history.items[np.isin(history.kinds, _POSITIVE)]
    return items, 0.5 ** (np.arange(len(items))[::-1] / half_life)


def tag_shares(history: History, tags: TagTable, *, half_life: float = HALF_LIFE) -> Floats:
    """Recency-weighted tag distribution of a history, float64 (G,): adds up to 1, or all 0 without any tag."""
    items, weights = recency(history, half_life=half_life)
    return tags.distribution(items, weights)


def interests(
    history: History, tags: TagTable, *, edits: Mapping[str, float] | None = None, half_life: float = HALF_LIFE
) -> list[Interest]:
    """All tags of the history and of the edits, the strongest leaning first; ties in alphabetical order.

    edits: tag -> factor, see `interest_scores`. ConfigError and CatalogueError as there.
    """
    factors = _factors(tags, edits or {})
    items, weights = recency(history, half_life=half_life)
    shares = tags.distribution(items, weights)
    usual = tags.distribution(np.arange(len(tags)))
    events = float(weights.sum()) if shares.any() else 0.0
    leaning = (events * shares + PULL * usual) / np.maximum((events + PULL) * usual, 1e-12)
    columns = np.flatnonzero((shares > 0) | (factors != 1.0))
    order = columns[np.lexsort((columns, -leaning[columns]))]
    return [
        Interest(tags.names[c], float(shares[c]), float(usual[c]), float(leaning[c]), float(factors[c]))
        for c in order.tolist()
    ]


def interest_scores(tags: TagTable, edits: Mapping[str, float], *, strength: float) -> NDArray[np.float32]:
    """What a person's edits add to each score, float32 (N,): strength times the sum of log2(factor) over its tags.

    edits: tag -> factor; 2 adds one `strength` to each item of the tag, 1/2 takes one away, 0 mutes. strength: in units
    of the score, such as `scale.spread`. Muted tags add nothing here and remove their items, see `muted_items`.
    ConfigError for a factor outside 0 to `MOST`, CatalogueError for a tag that no item has.
    """
    factors = _factors(tags, edits)
    logs = np.log2(np.where(factors > 0, factors, 1.0))
    return (strength * tags.sums(logs)).astype(np.float32)


def muted_items(tags: TagTable, edits: Mapping[str, float]) -> NDArray[np.bool_]:
    """Items that have a muted tag (factor 0), bool (N,). Errors as in `interest_scores`."""
    return tags.with_any(np.flatnonzero(_factors(tags, edits) == 0).tolist())


def _factors(tags: TagTable, edits: Mapping[str, float]) -> Floats:
    factors = np.ones(len(tags.names))
    for name, factor in edits.items():
        if not 0 <= factor <= MOST:
            raise ConfigError(f"found factor {factor} for tag {name[:60]!r}; expected 0 (mute) to {MOST:g}")
        factors[tags.index(name)] = factor
    return factors
