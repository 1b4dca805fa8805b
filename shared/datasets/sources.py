"""Recognising what a folder holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shared.datasets import generic, movielens
from shared.datasets.interactions import Interactions
from shared.errors import DataError

Loader = Callable[[Path], Interactions]

#: First match wins: the file that marks a layout, one that must lie beside it (or none), the loader.
LAYOUTS: tuple[tuple[str, str, Loader], ...] = (
    ("u.data", "", movielens.load_100k),
    ("ratings.dat", "", movielens.load_1m),
    ("sequences.txt", "movies.dat", movielens.load_1m_sequences),
    ("sequences.txt", "", generic.load_sequences),
    ("ratings.csv", "", movielens.load_csv),
    *((f"events{suffix}", "", generic.load_tables) for suffix in generic.SUFFIXES),
)

EXPECTED = (
    "u.data + u.item, ratings.dat + movies.dat, sequences.txt + movies.dat or items.csv, "
    "ratings.csv + movies.csv, or events + items as .csv, .jsonl or .parquet"
)


def load_data(source: str | Path, *, min_item_count: int = 0) -> Interactions:
    """Read a data folder, whichever of the layouts in `docs/data.md` it holds.

    min_item_count: drop items with fewer events than this; 0 keeps all.
    Raises DataError, naming file, line, column, found and expected, and keeps nothing of a bad source.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing there"
        raise DataError.at(folder, found=found, expected=f"a folder with {EXPECTED}")
    for marker, companion, loader in LAYOUTS:
        if (folder / marker).is_file() and (not companion or (folder / companion).is_file()):
            return loader(folder).with_min_item_count(min_item_count)
    names = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "an empty folder"
    raise DataError.at(folder, found=shown, expected=EXPECTED)
