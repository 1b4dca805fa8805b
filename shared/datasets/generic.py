"""Anyone's data: `events` and `items` as csv, jsonl or parquet, or `sequences.txt` with such items.

Items that nobody has touched stay in the catalogue: they must be rankable.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.catalogue import Catalogue, clean_text
from shared.datasets.columns import (
    parse_ids,
    parse_items,
    parse_kinds,
    parse_numbers,
    parse_times,
    suggestion,
)
from shared.datasets.files import Table, read_table
from shared.datasets.interactions import EventColumns, Interactions
from shared.datasets.sequences import read_sequences
from shared.errors import DataError
from shared.schema import EventKind, Item

SUFFIXES = (".csv", ".jsonl", ".parquet")
EVENT_COLUMNS = ("user", "item", "timestamp", "kind", "value")
#: Columns of an items file that name an item or its own text, so that they are not attributes of it.
NOT_ATTRIBUTES = frozenset({"item", "item_id", "asin", "title", "text"})
TAG_COLUMNS = ("tags", "genres")
#: The first of these that an items file has says who made an item.
CREATOR_COLUMNS = ("creator", "artist", "author", "director", "brand")


def load_tables(folder: Path) -> Interactions:
    """A folder with an events file and an items file, each csv, jsonl or parquet."""
    catalogue = read_items(_one_of(folder, "items"))
    table = read_table(_one_of(folder, "events"))
    table.require("user", "item")
    for column in table.columns:
        if column not in EVENT_COLUMNS:
            raise DataError.at(
                table.path,
                line=1,
                column=column,
                found=f"the unknown column {column!r}",
                expected=f"only {', '.join(EVENT_COLUMNS)}",
                remedy=suggestion(column, EVENT_COLUMNS) or "Rename or remove it",
            )
    users, user = parse_ids(table, "user")
    value = _optional_values(table)
    rated = np.where(np.isnan(value), EventKind.CLICK, EventKind.RATING).astype(np.uint8)
    events = EventColumns(
        user=user,
        item=parse_items(table, "item", catalogue),
        time=parse_times(table, "timestamp") if "timestamp" in table.columns else np.full(len(table), np.nan),
        kind=parse_kinds(table, "kind", default=rated) if "kind" in table.columns else rated,
        value=value,
    )
    return Interactions.from_events(folder.resolve().name, users=users, catalogue=catalogue, events=events)


def load_sequences(folder: Path) -> Interactions:
    """A folder with `sequences.txt` and an items file. Every event is a click: a sequence says no more."""
    catalogue = read_items(_one_of(folder, "items"))
    name = folder.resolve().name
    return read_sequences(folder / "sequences.txt", name=name, catalogue=catalogue, kind=EventKind.CLICK)


def read_items(path: Path) -> Catalogue:
    """The catalogue of an items file.

    The text of an item is its title, its text and then the cells of all other columns in file order, joined
    by ". " with empty parts left out and | read as a comma. Without a title, the first sentence of the text
    is one. Raises DataError for a missing id or text column, an id that is empty or listed twice, or an item
    without text.
    """
    table = read_table(path)
    id_column = "item_id" if "item_id" in table.columns and "item" not in table.columns else "item"
    table.require(id_column)
    if not {"title", "text"} & set(table.columns):
        table.require("text")
    rows: dict[str, Item] = {}
    for row, item_id in enumerate(table.columns[id_column]):
        if not item_id.strip() or item_id in rows:
            found = f"item id {item_id!r} again" if item_id.strip() else "an empty id"
            raise table.error(row, id_column, found=found, expected="each id once")
        rows[item_id] = _item(table, row, item_id)
    return Catalogue.from_rows(rows.values())


def _item(table: Table, row: int, item_id: str) -> Item:
    """One item; its attributes join its text."""
    cells = {name: column[row].strip() for name, column in table.columns.items()}
    title, text = cells.get("title", ""), cells.get("text", "")
    if not clean_text(title + text):
        column = "text" if "text" in cells else "title"
        raise table.error(row, column, found="no usable text", expected="a title or a text")
    attributes = [cell.replace("|", ", ") for name, cell in cells.items() if name not in NOT_ATTRIBUTES]
    parts = [text, *attributes] if text.startswith(title) else [title, text, *attributes]
    tags = [tag.strip() for name in TAG_COLUMNS for tag in cells.get(name, "").split("|")]
    return Item(
        id=item_id,
        title=title or text.split(". ")[0],
        text=". ".join(part.rstrip(". ") for part in parts if part.rstrip(". ")),
        tags=tuple(tag for tag in tags if tag),
        domain=cells.get("domain", ""),
        creator=next((cells[name] for name in CREATOR_COLUMNS if name in cells), ""),
    )


def _optional_values(table: Table) -> NDArray[np.float32]:
    if "value" not in table.columns:
        return np.full(len(table), np.nan, dtype=np.float32)
    return parse_numbers(table, "value", optional=True).astype(np.float32)


def _one_of(folder: Path, stem: str) -> Path:
    """The one file of that name, whatever its format."""
    found = [folder / f"{stem}{suffix}" for suffix in SUFFIXES if (folder / f"{stem}{suffix}").is_file()]
    if len(found) != 1:
        names = " and ".join(path.name for path in found) or "none"
        raise DataError.at(folder, found=names, expected=f"exactly one of {stem}.csv, .jsonl or .parquet")
    return found[0]
