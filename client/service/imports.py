"""What a zip brings into a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from client.service.answered import ImportedOut
from client.service.parcels import unpacked
from client.service.person import Person
from shared.artifacts import load_catalogue
from shared.catalogue import Catalogue
from shared.datasets.generic import read_items
from shared.errors import DataError


def take_in(
    person: Person, data: bytes, *, what: Literal["history", "catalogue", "adapter"], user: str | None
) -> ImportedOut:
    """Import what a zip holds; nothing is kept of one that is refused (DataError, CatalogueError, AdapterError)."""
    with unpacked(data, within=person.profile.cache) as folder:
        if what == "history":
            count = person.import_history(folder, user=user)
        elif what == "catalogue":
            count = person.import_catalogue(read_catalogue(folder))
        else:
            person.install(folder)
            count = 1
    return ImportedOut(what=what, count=count)


def read_catalogue(folder: Path) -> Catalogue:
    """The catalogue of a run folder (items.jsonl), or of a folder with an items file (docs/data.md)."""
    found = [folder] if folder.is_file() else sorted(folder.glob("items.*"))
    if len(found) != 1:
        names = " and ".join(path.name for path in found) or "none"
        raise DataError(f"found {names}; expected exactly one of items.csv, items.jsonl or items.parquet")
    if found[0].suffix == ".jsonl" and '"domain"' in found[0].read_text(encoding="utf-8", errors="replace")[:4000]:
        return load_catalogue(found[0])
    return read_items(found[0])
