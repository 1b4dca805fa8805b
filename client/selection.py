"""Which items may be shown at all: what a request asks for, and what the person has seen or refused."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from client.store import History
from client.tags import TagTable
from shared.catalogue import Catalogue
from shared.errors import CatalogueError
from shared.schema import SEEN_KINDS, EventKind

#: `show` leaves nothing out; `hide` what was consumed or skipped; `fresh` also what was only shown before.
SeenPolicy = Literal["show", "hide", "fresh"]
_HIDDEN: dict[str, frozenset[EventKind]] = {
    "show": frozenset(),
    "hide": SEEN_KINDS,
    "fresh": frozenset(EventKind),
}


@dataclass(frozen=True)
class Selection:
    """What a request asks for.

    tags: at least one of these; none asks for nothing. without_tags: none of these. domains: one of these. candidates:
    catalogue indices of an app's own shelf; None is the whole catalogue, an empty one is nothing. not_interested:
    indices the person refused, whatever the seen policy.
    """

    tags: Collection[str] = ()
    without_tags: Collection[str] = ()
    domains: Collection[str] = ()
    candidates: Collection[int] | None = None
    not_interested: Collection[int] = ()
    seen: SeenPolicy = "hide"


def allowed_items(
    catalogue: Catalogue, tags: TagTable, *, selection: Selection, history: History | None = None
) -> NDArray[np.bool_]:
    """Items that may be shown, bool (N,).

    CatalogueError for a tag or domain that no item has, an index outside the catalogue or an unknown seen policy.
    """
    may = np.ones(len(catalogue), dtype=np.bool_)
    if selection.candidates is not None:
        may[:] = False
        may[_indices(selection.candidates, len(catalogue))] = True
    if selection.tags:
        may &= tags.with_any([tags.index(name) for name in selection.tags])
    if selection.without_tags:
        may &= ~tags.with_any([tags.index(name) for name in selection.without_tags])
    if selection.domains:
        may &= _in_domains(catalogue, selection.domains)
    may[_indices(selection.not_interested, len(catalogue))] = False
    hidden = _HIDDEN.get(selection.seen)
    if hidden is None:
        raise CatalogueError(f"found seen policy {selection.seen!r}; expected one of {', '.join(_HIDDEN)}")
    if history is not None:
        may[history.items[np.isin(history.kinds, [int(kind) for kind in hidden])]] = False
    return may


def _indices(items: Collection[int], count: int) -> NDArray[np.int64]:
    found = np.array(list(items), dtype=np.int64)
    outside = found[(found < 0) | (found >= count)]
    if len(outside):
        raise CatalogueError(f"found item index {outside[0]}; expected 0 to {count - 1}")
    return found


def _in_domains(catalogue: Catalogue, domains: Collection[str]) -> NDArray[np.bool_]:
    known = {item.domain for item in catalogue.items}
    unknown = sorted(set(domains) - known)
    if unknown:
        named = ", ".join(repr(name) for name in sorted(known)[:10])
        raise CatalogueError(f"found domain {unknown[0][:60]!r}; expected one of {named}")
    wanted = set(domains)
    return np.array([item.domain in wanted for item in catalogue.items], dtype=np.bool_)
