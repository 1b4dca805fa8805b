"""Turning text columns into numbers, whole columns at a time; only a failure looks for its place."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from shared.catalogue import Catalogue
from shared.datasets.files import Table
from shared.schema import EventKind

#: Seconds UTC beyond this (the year 5138) are taken for milliseconds and refused.
LATEST_SECONDS = 1e11

_KINDS = {kind.label: int(kind) for kind in EventKind}


def parse_ids(table: Table, column: str) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Distinct ids by first appearance, and each row's index (n,) into them. Empty ids are refused."""
    cells = table.columns[column]
    index = {cell: position for position, cell in enumerate(dict.fromkeys(cells))}
    positions = list(map(index.__getitem__, cells))
    for raw in index:
        if not raw.strip():
            raise table.error(cells.index(raw), column, found="an empty id", expected="an id")
    return tuple(index), np.array(positions, dtype=np.int32)


def parse_items(table: Table, column: str, catalogue: Catalogue) -> NDArray[np.int32]:
    """Each row's catalogue index (n,). Unknown ids are counted, then refused at the first place."""
    ids, positions = parse_ids(table, column)
    unknown = [index for index, item_id in enumerate(ids) if item_id not in catalogue]
    if unknown:
        rows = np.flatnonzero(np.isin(positions, unknown))
        raise table.error(
            int(rows[0]),
            column,
            found=f"unknown item id {ids[positions[rows[0]]]!r}",
            expected=f"an id of the {len(catalogue)} listed items",
            remedy=f"In all {len(rows)} events name {len(unknown)} unknown items",
        )
    lookup = np.array([catalogue.index(item_id) for item_id in ids], dtype=np.int32)
    return lookup[positions]


def parse_numbers(table: Table, column: str, *, optional: bool = False) -> NDArray[np.float64]:
    """Finite numbers (n,). An empty cell is NaN if `optional`, else refused."""
    cells = table.columns[column]
    if optional:
        cells = [cell.strip() or "nan" for cell in cells]
    try:
        numbers = np.array(list(map(float, cells)), dtype=np.float64)
    except ValueError:
        numbers = np.array([_number_or_infinite(cell) for cell in cells], dtype=np.float64)
    wrong = np.isinf(numbers) if optional else ~np.isfinite(numbers)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise table.error(row, column, found=repr(table.columns[column][row]), expected="a number")
    return numbers


def parse_times(table: Table, column: str) -> NDArray[np.float64]:
    """Seconds UTC (n,) from numbers or ISO 8601 (UTC if without offset). All cells empty: all NaN."""
    cells = table.columns[column]
    if not any(cell.strip() for cell in cells):
        return np.full(len(table), np.nan)
    try:
        seconds = np.array(list(map(float, cells)), dtype=np.float64)
    except ValueError:
        seconds = np.array([_seconds_or_nan(cell) for cell in cells], dtype=np.float64)
    wrong = ~(np.abs(seconds) < LATEST_SECONDS)
    if wrong.any():
        row = int(np.argmax(wrong))
        found, remedy = repr(cells[row]), ""
        if not cells[row].strip():
            found, remedy = "an empty timestamp", "Give every event a timestamp, or none"
        elif np.isfinite(seconds[row]):
            remedy = "This looks like milliseconds: divide by 1000"
        raise table.error(row, column, found=found, expected="seconds UTC or an ISO 8601 time", remedy=remedy)
    return seconds


def parse_kinds(table: Table, column: str, *, default: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """EventKind numbers (n,) from labels; an empty cell takes the row's default."""
    cells = [cell.strip().lower() for cell in table.columns[column]]
    for cell in set(cells):
        if cell and cell not in _KINDS:
            raise table.error(
                cells.index(cell),
                column,
                found=f"unknown kind {cell!r}",
                expected=f"one of {', '.join(_KINDS)}",
                remedy=suggestion(cell, list(_KINDS)),
            )
    kinds = np.array([_KINDS.get(cell, -1) for cell in cells], dtype=np.int16)
    return np.where(kinds < 0, default, kinds).astype(np.uint8)


def suggestion(word: str, known: Sequence[str]) -> str:
    """A question for the end of a message, empty when nothing is near."""
    near = get_close_matches(word, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else ""


def _number_or_infinite(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("inf")


def _seconds_or_nan(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(cell.strip())
    except ValueError:
        return float("nan")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
