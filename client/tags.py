"""The catalogue's tags and years as arrays."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from client.scale import Floats
from shared.catalogue import Catalogue
from shared.errors import CatalogueError
from shared.schema import Item

_YEAR_IN_TITLE = re.compile(r"\((1[89]\d\d|20\d\d)\)")
_YEAR_TAG = re.compile(r"(1[89]\d\d|20\d\d)s?")


@dataclass(frozen=True)
class TagTable:
    """Which tags each item has, in compressed rows.

    names: the G tags in alphabetical order. start: int64 (N + 1,); item i has the tags of[start[i]:start[i + 1]].
    of: int64 (T,).
    """

    names: tuple[str, ...]
    start: NDArray[np.int64]
    of: NDArray[np.int64]
    _owner: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_owner", np.repeat(np.arange(len(self)), np.diff(self.start)))
        object.__setattr__(self, "_index", {name.casefold(): place for place, name in enumerate(self.names)})

    @classmethod
    def of_catalogue(cls, catalogue: Catalogue) -> TagTable:
        """Tags as the items name them; a tag that an item names twice counts once, capitals do not matter."""
        rows = [list(dict.fromkeys(tag.casefold() for tag in item.tags if tag)) for item in catalogue.items]
        shown: dict[str, str] = {}
        for item in catalogue.items:
            for tag in item.tags:
                shown.setdefault(tag.casefold(), tag)
        keys = sorted({tag for row in rows for tag in row})
        place = {key: column for column, key in enumerate(keys)}
        start = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        flat = np.array([place[tag] for row in rows for tag in row], dtype=np.int64)
        return cls(tuple(shown[key] for key in keys), start, flat)

    def __len__(self) -> int:
        """Number of items N."""
        return len(self.start) - 1

    def __contains__(self, name: str) -> bool:
        """Whether an item has this tag, whatever its capitals."""
        return name.casefold() in self._index

    def index(self, name: str) -> int:
        """Column of a tag, whatever its capitals; CatalogueError with the nearest name when no item has it."""
        found = self._index.get(name.casefold())
        if found is None:
            close = difflib.get_close_matches(name[:60].casefold(), list(self._index), n=1)
            hint = f"; did you mean {self.names[self._index[close[0]]]!r}?" if close else ""
            raise CatalogueError(f"found tag {name[:60]!r}; expected one of the catalogue's {len(self.names)}{hint}")
        return found

    def of_item(self, item: int) -> NDArray[np.int64]:
        """Columns of an item's tags, int64."""
        return self.of[self.start[item] : self.start[item + 1]]

    def with_any(self, columns: Iterable[int]) -> NDArray[np.bool_]:
        """Items that have at least one of the tags, bool (N,)."""
        having = np.zeros(len(self), dtype=np.bool_)
        having[self._owner[np.isin(self.of, list(columns))]] = True
        return having

    def sums(self, values: ArrayLike) -> Floats:
        """Sum over each item's tags of a value per tag, float64 (N,). values: (G,)."""
        weights = np.asarray(values, dtype=np.float64)[self.of]
        return np.bincount(self._owner, weights=weights, minlength=len(self)).astype(np.float64)

    def shares(self, items: NDArray[np.int64]) -> Floats:
        """Tags of some items with equal weights, float64 (n, G): rows add up to 1, or to 0 without tags."""
        found = np.zeros((len(items), len(self.names)))
        for row, item in enumerate(items.tolist()):
            own = self.of_item(item)
            found[row, own] = 1 / max(1, len(own))
        return found

    def distribution(self, items: NDArray[np.int64], weights: ArrayLike | None = None) -> Floats:
        """Weighted mean of `shares` over the items that have tags, float64 (G,); zeros when none has."""
        given = np.ones(len(items)) if weights is None else np.asarray(weights, dtype=np.float64)
        per_item = np.bincount(items, weights=given, minlength=len(self)) / np.maximum(np.diff(self.start), 1)
        total = np.bincount(self.of, weights=per_item[self._owner], minlength=len(self.names))
        return total / max(float(total.sum()), 1e-12)


def creators_of(catalogue: Catalogue) -> NDArray[np.int64] | None:
    """A number for each item's creator, int64 (N,), -1 where it is not known; None where no item names one."""
    names = [item.creator.casefold() for item in catalogue.items]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(name for name in names if name))}
    return np.array([numbers.get(name, -1) for name in names], dtype=np.int64) if numbers else None


def item_years(catalogue: Catalogue) -> Floats:
    """The year each item is from, float64 (N,), NaN where neither title nor tags say.

    A year in brackets in the title, as in "Heat (1995)", goes before a tag that is a year ("1995") or a decade
    ("1990s", which counts as its first year). The last one in a title counts.
    """
    return np.array([_year(item) for item in catalogue.items])


def _year(item: Item) -> float:
    in_title = _YEAR_IN_TITLE.findall(item.title)
    if in_title:
        return float(in_title[-1])
    matches = (_YEAR_TAG.fullmatch(tag) for tag in item.tags)
    return next((float(match[1]) for match in matches if match), float("nan"))
