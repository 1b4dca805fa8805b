"""The MovieLens layouts: 100K (`u.data`), 1M (`ratings.dat` or `sequences.txt`) and csv (`ratings.csv`).

Only films that someone rated are kept, the protocol of the published numbers (3,416 items on the 5-core 1M).
Harper & Konstan, "The MovieLens Datasets: History and Context", 2015.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from shared.catalogue import Catalogue
from shared.datasets.columns import parse_ids, parse_items, parse_numbers, parse_times
from shared.datasets.files import Table, read_delimited, read_table
from shared.datasets.interactions import EventColumns, Interactions
from shared.datasets.sequences import read_sequences
from shared.schema import EventKind, Item

GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
NO_GENRE = frozenset({"", "unknown", "(no genres listed)"})


def load_100k(folder: Path) -> Interactions:
    """MovieLens 100K: `u.data` (user, item, rating, seconds; tabs) and `u.item` (| separated, latin-1)."""
    details = ("title", "released", "video", "url")
    films = read_delimited(folder / "u.item", separator="|", names=("item", *details, *GENRES_100K))
    genres = [_flagged(films, row) for row in range(len(films))]
    ratings = read_delimited(folder / "u.data", separator="\t", names=("user", "item", "rating", "timestamp"))
    return _from_ratings("ml-100k", ratings=ratings, catalogue=_film_catalogue(films, genres))


def load_1m(folder: Path) -> Interactions:
    """MovieLens 1M with timestamps: `ratings.dat` and `movies.dat` (:: separated, latin-1)."""
    ratings = read_delimited(folder / "ratings.dat", separator="::", names=("user", "item", "rating", "timestamp"))
    return _from_ratings("ml-1m", ratings=ratings, catalogue=_films_1m(folder))


def load_1m_sequences(folder: Path) -> Interactions:
    """MovieLens 1M as `sequences.txt` in time order, without timestamps or ratings, and `movies.dat`."""
    sequences = read_sequences(
        folder / "sequences.txt", name="ml-1m", catalogue=_films_1m(folder), kind=EventKind.RATING
    )
    return sequences.with_min_item_count(1)


def load_csv(folder: Path) -> Interactions:
    """Newer MovieLens: `ratings.csv` and `movies.csv`, with their headers (userId, movieId, ...)."""
    films = _renamed(read_table(folder / "movies.csv"), movieId="item", title="title", genres="genres")
    ratings = _renamed(
        read_table(folder / "ratings.csv"),
        userId="user",
        movieId="item",
        rating="rating",
        timestamp="timestamp",
    )
    genres = [cell.split("|") for cell in films.columns["genres"]]
    return _from_ratings("movielens", ratings=ratings, catalogue=_film_catalogue(films, genres))


def _films_1m(folder: Path) -> Catalogue:
    films = read_delimited(folder / "movies.dat", separator="::", names=("item", "title", "genres"))
    return _film_catalogue(films, [cell.split("|") for cell in films.columns["genres"]])


def _flagged(films: Table, row: int) -> list[str]:
    """The genres of one line of u.item, whose last 19 fields are 0 or 1."""
    chosen = []
    for genre in GENRES_100K:
        flag = films.columns[genre][row]
        if flag not in ("0", "1"):
            raise films.error(row, genre, found=repr(flag), expected="0 or 1")
        if flag == "1":
            chosen.append(genre)
    return chosen


def _film_catalogue(films: Table, genres: Iterable[list[str]]) -> Catalogue:
    """Films whose text is title and genres: "Toy Story (1995). Animation, Children's, Comedy"."""
    ids = films.columns["item"]
    if len(set(ids)) != len(ids):
        row = next(row for row, item_id in enumerate(ids) if ids.index(item_id) < row)
        raise films.error(row, "item", found=f"item id {ids[row]!r} again", expected="each id once")
    items = []
    for row, listed in enumerate(genres):
        title = films.columns["title"][row].strip()
        if not title:
            raise films.error(row, "title", found="an empty title", expected="a title")
        tags = tuple(genre for genre in listed if genre not in NO_GENRE)
        text = f"{title}. {', '.join(tags)}" if tags else title
        items.append(Item(id=ids[row], title=title, text=text, tags=tags, domain="films"))
    return Catalogue.from_rows(items)


def _from_ratings(name: str, *, ratings: Table, catalogue: Catalogue) -> Interactions:
    """Rating events over the films that were rated."""
    users, user = parse_ids(ratings, "user")
    events = EventColumns(
        user=user,
        item=parse_items(ratings, "item", catalogue),
        time=parse_times(ratings, "timestamp"),
        kind=np.full(len(user), EventKind.RATING, dtype=np.uint8),
        value=parse_numbers(ratings, "rating").astype(np.float32),
    )
    return Interactions.from_events(name, users=users, catalogue=catalogue, events=events).with_min_item_count(1)


def _renamed(table: Table, **names: str) -> Table:
    """The named columns under our names; refused if one is missing."""
    table.require(*names)
    return Table(table.path, table.lines, {ours: table.columns[theirs] for theirs, ours in names.items()})
